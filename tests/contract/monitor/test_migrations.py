"""Counts, predictions and labels of a database of before identity by model, kinds of output and rollups."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from flywheel_common.postgres.migrate import migrate
from flywheel_common.postgres.pool import create_pool
from flywheel_monitor.server import MIGRATIONS
from flywheel_monitor.store.postgres.packs import Pack
from flywheel_monitor.windows.layout import Layout
from tests.support.builders.monitor import (
    HOUR_US,
    MINUTE_US,
    MODEL,
    REFERENCE,
    START_US,
    outcomes,
    predictions,
)
from tests.support.servers.monitor import postgres_monitor

OTHER = "projects/p/models/other"
KINDS = (
    "018bcfe5-6880-7abc-8def-0123456789ab",
    "9f0c2a5e-1b7d-4c3e-8a90-0123456789ab",
    "018BCFE5-6880-7ABC-8DEF-0123456789AB",
    "kürzer",
)
"""Ids that are searched for in different ways."""
_BEFORE_PACKS = """
INSERT INTO prediction (model_id, prediction_id, variant_id, event_time, score, decision, failed, source,
    latency_ms, partition, segment, subject, cost, outputs)
SELECT 1, unnest($1::text[]), 1, $2, 0.25, false, false, 1, 3, 0, 'de', '', 0.5, $3
"""


async def old_database(dsn: str, folder: Path) -> None:
    """Version 1 of two models with a pane of one prediction each, its label, and a label without
    prediction."""
    old = folder / "flywheel_monitor" / "migrations"
    old.mkdir(parents=True)
    for number in ("0001", "0002", "0003"):
        (source,) = MIGRATIONS.glob(f"{number}_*.sql")
        (old / source.name).write_bytes(source.read_bytes())
    layout = Layout.of(REFERENCE.columns)
    score = round(0.25 * 2**32)
    counts = struct.pack("<I2I2i", 2, layout.scores + 50, layout.negatives + 50, 1, 1)
    sums = struct.pack("<17q", 0, score, score // 4, 0, score, 0, score, *[0] * 10)
    async with create_pool(dsn) as pool:
        await pool.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        await migrate(pool, old)
        for n, model in enumerate((MODEL, OTHER), start=1):
            await pool.execute("INSERT INTO model (name, project) VALUES ($1, 'p')", model)
            await pool.execute(
                "INSERT INTO model_version (model_id, name, reference) VALUES ($1, $2, $3)",
                n,
                f"{model}/versions/1",
                json.dumps([c.to_json() for c in REFERENCE.columns]),
            )
            await pool.execute(
                "INSERT INTO variant (model_version_id, release, rollout, role) VALUES ($1, $2, '', 1)",
                n,
                f"{model}/releases/1",
            )
            await pool.execute(
                "INSERT INTO prediction VALUES ($1, false, false, false, 1, 0, $2, 3, $3, 0.25, '')",
                f"p{n}",
                n,
                START_US,
            )
            await pool.execute(
                "INSERT INTO pane VALUES ($1, false, '', $2, 0, 1, $3, $4)", n, START_US, counts, sums
            )
            await pool.execute("INSERT INTO label VALUES ($1, 0, 0, $2, 'o')", f"p{n}", START_US)
            await pool.execute("INSERT INTO ingest_count VALUES ($1, 0, 1, 1, $2)", n, n - 1)
        await pool.execute("INSERT INTO label VALUES ('early', 0, 1, $1, 'o')", START_US)


async def test_an_old_database_is_read_and_counted_on(database: str, tmp_path: Path) -> None:
    await old_database(database, tmp_path)
    async with postgres_monitor(database) as monitor:
        for model, rows in ((MODEL, 1), (OTHER, 1)):
            found = await monitor.performance(f"{model}/versions/1")
            assert (rows, 1, 0.25) == (found.predictions, found.quality.labelled, found.score_mean)
            assert (START_US, START_US) == (found.first_event_us, found.last_event_us)
        counts = await monitor.counts()
        assert (2, 1) == (counts.predictions, counts.orphans), "the early label belongs to the other model"
        again = predictions(["p1", "p2"], [0.25, 0.75], times=[START_US, START_US + MINUTE_US])
        await monitor.predicted(again)
        await monitor.predicted(predictions(["early"], [0.75], times=[START_US + HOUR_US], model=OTHER))
        await monitor.labelled(outcomes(["p2"], [1.0]))
        mine = await monitor.performance(f"{MODEL}/versions/1")
        assert (2, 2, 0.5) == (mine.predictions, mine.quality.labelled, mine.quality.label_mean)
        theirs = await monitor.performance(f"{OTHER}/versions/1")
        assert (2, 2, 0.5) == (theirs.predictions, theirs.quality.labelled, theirs.quality.label_mean)
        assert 0 == (await monitor.counts()).orphans
        first = await monitor.performance(f"{MODEL}/versions/1", START_US, START_US + MINUTE_US)
        assert 0.25 == pytest.approx(first.score_mean)


async def test_rows_become_packs_in_which_they_are_found(database: str, tmp_path: Path) -> None:
    await old_database(database, tmp_path)
    old = tmp_path / "flywheel_monitor" / "migrations"
    for source in MIGRATIONS.glob("*.sql"):
        if source.name < "0015":
            (old / source.name).write_bytes(source.read_bytes())
    outputs = struct.pack("<2d", 0.25, 0.75)
    async with create_pool(database) as pool:
        await migrate(pool, old)
        await pool.execute(_BEFORE_PACKS, KINDS, START_US + MINUTE_US, outputs)
    async with postgres_monitor(database) as monitor:
        times = [START_US + 2 * MINUTE_US] * len(KINDS)
        await monitor.predicted(predictions([*KINDS, "new"], times=[*times, times[0]]))
        counts = await monitor.counts()
        assert (len(KINDS), 3) == (counts.duplicates, counts.predictions)
        await monitor.labelled(outcomes(KINDS, [1.0] * len(KINDS)))
        assert 1 + len(KINDS) == (await monitor.performance(f"{MODEL}/versions/1")).quality.labelled
    async with create_pool(database) as pool:
        packs = [Pack(r) for r in await pool.fetch("SELECT * FROM prediction_pack ORDER BY id")]
    (pack,) = [p for p in packs if len(p.ids) == len(KINDS)]
    assert sorted(KINDS) == pack.ids
    assert [0.25, 0.75] == np.array(pack.outputs)[3].tolist()
    assert [0.5] * len(KINDS) == pack.costs.tolist()
    assert (["de"] * len(KINDS), [""] * len(KINDS)) == (pack.segments, pack.subjects)
    assert ([0.25], [1], [False]) == ([pack.scores[0]], [pack.sources[0]], [pack.decisions[0]])
    assert [START_US + MINUTE_US] * 3 == list(pack.row["newest_us"])
