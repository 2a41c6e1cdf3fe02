"""Tracking on real PostgreSQL: retries, leases, search."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime

import pytest
import pytest_asyncio

from flywheel_common.clock import ManualClock
from flywheel_common.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from flywheel_common.ids import SequentialIds
from flywheel_common.postgres.migrate import migrate
from flywheel_common.postgres.pool import Pool, connection, create_pool
from flywheel_trainer.recipes.outcome import Artifact
from flywheel_trainer.runs.run import Experiment, ExperimentName, Run, RunName, RunState, RunUpdate
from flywheel_trainer.runs.search import parse_filter, parse_order
from flywheel_trainer.runs.use_cases import Runs
from flywheel_trainer.server import MIGRATIONS
from flywheel_trainer.store.postgres.connection import prepare
from flywheel_trainer.store.postgres.runs import PostgresRuns

PROJECT = "default"
WANTED = Run(RunName(PROJECT, "new"), "late", params={"lr": "0.1"}, lease_seconds=60)


@pytest_asyncio.fixture
async def pool(database: str) -> AsyncIterator[Pool]:
    async with create_pool(database, init=prepare) as pool:
        await migrate(pool, MIGRATIONS)
        yield pool


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(datetime(2026, 1, 1, tzinfo=UTC))


@pytest_asyncio.fixture
async def runs(pool: Pool, clock: ManualClock) -> Runs:
    runs = Runs(PostgresRuns(pool), SequentialIds("n"), clock)
    await runs.create_experiment(Experiment(ExperimentName(PROJECT, "late")), "", b"")
    return runs


async def test_a_hundred_equal_requests_make_one_run_and_equal_answers(runs: Runs) -> None:
    answers = await asyncio.gather(*(runs.create_run(WANTED, PROJECT, "same", b"body") for _ in range(100)))
    assert len({str(run.name) for run in answers}) == 1
    assert len((await runs.list_runs(PROJECT, (), None, 100, "")).items) == 1
    with pytest.raises(InvalidArgument) as reused:
        await runs.create_run(WANTED, PROJECT, "same", b"another body")
    assert reused.value.reason == "REQUEST_ID_REUSED"


async def test_a_repeated_point_keeps_its_first_value_and_counts_once(runs: Runs) -> None:
    name = (await runs.create_run(WANTED, PROJECT, "", b"")).name
    assert await runs.log_metrics(name, ["loss", "loss", "auc"], [1, 2, 1], [0.9, 0.8, 0.6], [1, 2, 3]) == 3
    assert await runs.log_metrics(name, ["loss", "loss", "auc"], [1, 2, 1], [0.9, 0.8, 0.6], [1, 2, 3]) == 0
    assert await runs.log_metrics(name, ["loss", "loss"], [2, 3], [77.0, 0.7], [9, 9]) == 1
    points = (await runs.points(name, "loss", 10, "")).items
    assert [(p.step, p.value) for p in points] == [(1, 0.9), (2, 0.8), (3, 0.7)]
    assert dict((await runs.get(name)).metrics) == {"loss": 0.7, "auc": 0.6}


async def test_one_call_may_hold_the_same_point_twice_and_late_points_do_not_become_the_last(
    runs: Runs,
) -> None:
    name = (await runs.create_run(WANTED, PROJECT, "", b"")).name
    assert await runs.log_metrics(name, ["loss", "loss"], [5, 5], [0.5, 0.4], [1, 1]) == 1
    await runs.log_metrics(name, ["loss"], [2], [9.0], [1])
    assert (await runs.get(name)).metrics["loss"] == 0.5


async def test_columns_of_unequal_length_and_unknown_runs_are_refused(runs: Runs) -> None:
    name = (await runs.create_run(WANTED, PROJECT, "", b"")).name
    with pytest.raises(InvalidArgument):
        await runs.log_metrics(name, ["a"], [1, 2], [1.0], [1])
    with pytest.raises(NotFound):
        await runs.log_metrics(RunName(PROJECT, "nobody"), ["a"], [1], [1.0], [1])
    with pytest.raises(NotFound) as unknown:
        await runs.create_run(replace(WANTED, experiment="none"), PROJECT, "", b"")
    assert unknown.value.reason == "UNKNOWN_EXPERIMENT"


async def test_a_silent_run_becomes_lost_and_a_heard_one_does_not(runs: Runs, clock: ManualClock) -> None:
    silent = (await runs.create_run(WANTED, PROJECT, "", b"")).name
    heard = (await runs.create_run(WANTED, PROJECT, "", b"")).name
    clock.advance(50)
    await runs.update(heard, RunUpdate())
    assert await runs.expire_silent() == []
    clock.advance(15)
    assert await runs.expire_silent() == [str(silent)]
    lost = await runs.get(silent)
    assert (lost.state, lost.ended_at) == (RunState.LOST, clock.now())
    assert (await runs.get(heard)).state is RunState.RUNNING
    with pytest.raises(FailedPrecondition) as ended:
        await runs.log_metrics(silent, ["a"], [1], [1.0], [1])
    assert ended.value.reason == "RUN_ENDED"


async def test_no_run_is_lost_because_the_service_was_away(
    runs: Runs, pool: Pool, clock: ManualClock
) -> None:
    await runs.create_run(WANTED, PROJECT, "", b"")
    clock.advance(600)
    restarted = Runs(PostgresRuns(pool), SequentialIds("m"), clock)
    assert await restarted.expire_silent() == []
    clock.advance(61)
    assert len(await restarted.expire_silent()) == 1


async def test_an_update_keeps_first_params_adds_artifacts_and_ends_once(runs: Runs) -> None:
    name = (await runs.create_run(WANTED, PROJECT, "", b"")).name
    artifact = Artifact("plot.png", 3, "00", "s3://b/k")
    await runs.update(name, RunUpdate(params={"lr": "9", "wd": "0"}, tags={"a": "1"}, artifacts=(artifact,)))
    done = await runs.update(name, RunUpdate(tags={"a": "2"}, state=RunState.SUCCEEDED))
    assert dict(done.params) == {"lr": "0.1", "wd": "0"}
    assert (dict(done.tags), done.artifacts, done.state) == ({"a": "2"}, (artifact,), RunState.SUCCEEDED)
    with pytest.raises(FailedPrecondition):
        await runs.update(name, RunUpdate(state=RunState.FAILED))


async def test_runs_are_found_by_params_and_metrics_in_the_order_asked_page_by_page(runs: Runs) -> None:
    values = {}
    for number in range(12):
        wanted = replace(WANTED, params={"lr": "0.1" if number % 2 else "0.2"})
        name = (await runs.create_run(wanted, PROJECT, "", b"")).name
        if number != 5:
            values[str(name)] = (wanted.params["lr"], (number * 7 % 12) / 12)
            await runs.log_metrics(name, ["auc"], [1], [(number * 7 % 12) / 12], [1])
    expected = sorted(
        (n for n, (lr, auc) in values.items() if lr == "0.1" and auc > 0.2), key=lambda n: -values[n][1]
    )
    terms, order = parse_filter("params.lr=0.1 AND metrics.auc>0.2"), parse_order("-metrics.auc")
    found: list[str] = []
    token = ""
    while True:
        page = await runs.list_runs(PROJECT, terms, order, 2, token)
        found += [str(run.name) for run in page.items]
        token = page.next_page_token
        if not token:
            break
    assert found == expected
    with_none = await runs.list_runs(PROJECT, (), order, 100, "")
    assert "auc" not in with_none.items[-1].metrics
    assert len(with_none.items) == 12
    newest = [str(run.name) for run in (await runs.list_runs(PROJECT, (), None, 100, "")).items]
    assert newest == sorted(newest, reverse=True)


async def test_an_experiment_may_be_created_again_but_not_changed_by_it(runs: Runs, pool: Pool) -> None:
    again = Experiment(ExperimentName(PROJECT, "late"))
    assert (await runs.create_experiment(again, "", b"")).name == again.name
    with pytest.raises(AlreadyExists):
        await runs.create_experiment(replace(again, description="other"), "r1", b"x")
    async with connection(pool) as conn:
        assert await conn.fetchval("SELECT count(*) FROM experiment") == 1
        assert await conn.fetchval("SELECT count(*) FROM idempotent_request") == 0
