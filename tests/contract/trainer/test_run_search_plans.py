"""PostgreSQL answers every condition and order of ListRuns from an index."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from flywheel_common.postgres.migrate import migrate
from flywheel_common.postgres.pool import create_pool
from flywheel_trainer.runs.search import NEWEST_FIRST, parse_filter, parse_order
from flywheel_trainer.server import MIGRATIONS
from flywheel_trainer.store.postgres.connection import prepare
from flywheel_trainer.store.postgres.run_search import RunSearch
from flywheel_trainer.store.postgres.runs import RUN_COLUMNS

RUNS = 20_000
_FILL = f"""
INSERT INTO experiment SELECT 'p', 'e' || i, '', '{{}}', now() FROM generate_series(0, 99) i;
INSERT INTO run (id, project, experiment, state, params, tags, artifacts, code_version, environment,
    training_set, job, lease_seconds, heartbeat_at, started_at, ended_at, display_name, parent_run)
SELECT 'run-' || lpad(i::text, 6, '0'), 'p', 'e' || i % 100, 'SUCCEEDED', jsonb_build_object('lr', i::text),
    jsonb_build_object('n', i::text), '[]', '', '{{}}', '', '', 60, now(), now() - i * interval '1 minute',
    now() - i * interval '1 minute', 'n' || i,
    CASE WHEN i > 0 THEN 'run-' || (i / 100) ELSE '' END
FROM generate_series(0, {RUNS - 1}) i;
INSERT INTO run_param_number SELECT id, 'lr', (params ->> 'lr')::float8 FROM run;
INSERT INTO run_metric (run_id, key, step, value, attempt, min_value, max_value)
SELECT r.id, k, 1, n, 0, n - 1, n + 1
FROM (SELECT id, row_number() OVER () AS n FROM run) r, unnest(ARRAY['auc', 'loss', 'f1', 'acc']) k;
ANALYZE run; ANALYZE run_metric; ANALYZE run_param_number;
"""


@pytest.fixture
async def pool(database: str) -> AsyncIterator[Any]:
    """A database with RUNS runs."""
    async with create_pool(database, init=prepare) as opened:
        await migrate(opened, MIGRATIONS)
        yield opened


async def plan_of(connection: Any, filter_: str, order: str) -> str:
    """The plan of the first part of a search.

    The second part, runs without the metric of the order, is read only after the end of the first.
    """
    search = RunSearch("p", parse_filter(filter_), parse_order(order) or NEWEST_FIRST, show_deleted=False)
    statement, parameters = search.statement(search.parts(None)[0], None, 51)
    rows = await connection.fetch(f"EXPLAIN {RUN_COLUMNS}{statement}", *parameters)
    return "\n".join(row[0] for row in rows)


async def test_every_condition_and_order_has_an_index(pool: Any) -> None:
    async with pool.acquire() as connection:
        await connection.execute(_FILL)
        for filter_ in (
            "",
            "experiment=e7",
            "state=RUNNING",
            "display_name=n77",
            "parent_run=projects/p/runs/run-7",
            "params.lr=77",
            "params.lr<50",
            "tags.n=77",
            "metrics.auc>19950",
            "min.auc<40",
            "max.auc>19950",
            "started_at>=2100-01-01",
            "ended_at>2100-01-01",
            "params.lr=77 OR tags.n=78",
            "metrics.auc>19950 AND params.lr=77",
        ):
            for order in ("", "-metrics.auc", "min.loss", "-max.f1", "started_at"):
                plan = await plan_of(connection, filter_, order)
                assert "Seq Scan on run " not in plan, (filter_, order, plan)
                assert "Seq Scan on run_metric" not in plan, (filter_, order, plan)


async def test_a_deep_page_of_an_order_is_read_from_the_index(pool: Any) -> None:
    async with pool.acquire() as connection:
        await connection.execute(_FILL)
        search = RunSearch("p", (), parse_order("-metrics.auc") or NEWEST_FIRST, show_deleted=False)
        statement, parameters = search.statement("with metric", ["100.0", "run-000000"], 51)
        rows = await connection.fetch(f"EXPLAIN (ANALYZE, COSTS OFF) {RUN_COLUMNS}{statement}", *parameters)
        assert "Sort" not in "\n".join(row[0] for row in rows)


async def test_a_bound_of_the_order_limits_what_is_read_from_its_index(pool: Any) -> None:
    async with pool.acquire() as connection:
        await connection.execute(_FILL)
        conditions = parse_filter("metrics.auc<10000")
        search = RunSearch("p", conditions, parse_order("-metrics.auc") or NEWEST_FIRST, show_deleted=False)
        statement, parameters = search.statement("with metric", None, 5)
        rows = await connection.fetch(
            f"EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF) {RUN_COLUMNS}{statement}", *parameters
        )
        plan = "\n".join(row[0] for row in rows)
        (read,) = (line for line in plan.splitlines() if "run_metric_last" in line)
        assert "rows=5.00 " in read or "rows=5 " in read, plan
