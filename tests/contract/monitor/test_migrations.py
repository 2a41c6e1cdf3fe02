"""Counts, predictions and labels of a database of before identity by model, kinds of output and rollups."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from flywheel_common.postgres.migrate import migrate
from flywheel_common.postgres.pool import create_pool
from flywheel_monitor.alerts.lifecycle import WHOLE, Kind
from flywheel_monitor.drift.verdict import Verdict
from flywheel_monitor.server import MIGRATIONS
from flywheel_monitor.windows.layout import Layout
from tests.support.builders.monitor import (
    HOUR_US,
    MINUTE_US,
    MODEL,
    REFERENCE,
    START_US,
    hour,
    outcomes,
    predictions,
)
from tests.support.servers.monitor import postgres_monitor

OTHER = "projects/p/models/other"


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


async def test_verdicts_of_before_have_what_drifted_in_their_reports(database: str, tmp_path: Path) -> None:
    await old_database(database, tmp_path)
    features = [
        {"feature": name, "verdict": verdict, "silenced": silenced}
        for name, verdict, silenced in (
            ("drifts", 3, False),
            ("moves", 2, False),
            ("stays", 1, False),
            ("dead", 4, False),
            ("silent", 3, True),
        )
    ]
    old = [{"feature": "older", "verdict": 3}, {"feature": "short", "verdict": 5}]
    async with create_pool(database) as pool:
        for at, found in ((1, features), (2, old), (3, features)):
            await pool.execute(
                "INSERT INTO window_report VALUES (1, $1, $2, 10, 0, $3)",
                hour(at).start_us,
                hour(at).end_us,
                json.dumps({"features": found}),
            )
        for kind, at, verdict in (
            ("DATA_DRIFT", 1, 3),
            ("DATA_DRIFT", 2, 3),
            ("DATA_DRIFT", 3, 1),
            ("DATA_QUALITY", 1, 4),
            ("CONCEPT_DRIFT", 1, 3),
            ("CONCEPT_DRIFT", 2, 1),
        ):
            await pool.execute(
                "INSERT INTO window_verdict VALUES (1, $1, $2, $3, $4, 'why')",
                kind,
                hour(at).start_us,
                hour(at).end_us,
                verdict,
            )
    async with postgres_monitor(database) as monitor, monitor.store.reading() as records:
        drifted = {kind: [dict(v.drifted) for v in await records.recent(1, kind, 9)] for kind in Kind}
    warning, drift, bad = Verdict.WARNING, Verdict.DRIFT, Verdict.DATA_QUALITY
    assert {
        Kind.DATA_DRIFT: [{}, {"older": drift}, {"drifts": drift, "moves": warning}],
        Kind.DATA_QUALITY: [{"dead": bad}],
        Kind.CONCEPT_DRIFT: [{}, {WHOLE: drift}],
        Kind.PREDICTION_DRIFT: [],
        Kind.LABEL_DRIFT: [],
    } == drifted
