"""Counts, predictions and labels of a database of before identity by model, kinds of output and rollups."""

from __future__ import annotations

import json
import random
import struct
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flywheel_common.ids import uuid7
from flywheel_common.postgres.migrate import migrate
from flywheel_common.postgres.pool import create_pool
from flywheel_monitor.alerts.lifecycle import WHOLE, Kind
from flywheel_monitor.drift.verdict import Verdict
from flywheel_monitor.server import MIGRATIONS
from flywheel_monitor.store.postgres.id_buckets import buckets_of
from flywheel_monitor.store.postgres.packs import PACK_ROWS, Pack
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


async def database_of_rows(dsn: str, folder: Path) -> None:
    """A database with the schema of before packs."""
    await old_database(dsn, folder)
    old = folder / "flywheel_monitor" / "migrations"
    for source in MIGRATIONS.glob("*.sql"):
        if source.name < "0016":
            (old / source.name).write_bytes(source.read_bytes())
    async with create_pool(dsn) as pool:
        await migrate(pool, old)


async def test_rows_become_packs_in_which_they_are_found(database: str, tmp_path: Path) -> None:
    await database_of_rows(database, tmp_path)
    outputs = struct.pack("<2d", 0.25, 0.75)
    async with create_pool(database) as pool:
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


def old_row(rng: random.Random, k: int) -> tuple[Any, ...]:
    """A row of the table of before packs, in the order of _COLUMNS."""
    shadow = rng.random() < 0.3
    return (
        1,
        rng.choice((f"id-{k}", f"ü{k}", uuid7(START_US // 1000 + k, k))),
        2 if shadow else 1,
        2 if shadow else 0,
        rng.choice((0, 0, 0, 0, 5)),
        datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=rng.randrange(2)),
        # Also times before 1970, and more rows in a second than a pack has.
        rng.choice((START_US, START_US, START_US + rng.randrange(3_000_000), -1, -1_000_000)),
        rng.random(),
        rng.random() < 0.5,
        rng.random() < 0.5,
        rng.randrange(1, 6),
        float(np.float32(rng.random())),
        rng.choice(("", "", "de", "é")),
        rng.choice(("", "", "s1")),
        rng.choice((None, None, 0.5, 0.0)),
        rng.choice((None, struct.pack("<3d", rng.random(), k, -0.0))),
    )


_COLUMNS = (
    *("model_id", "prediction_id", "variant_id", "shadow_variant", "partition", "arrived_at", "event_time"),
    *("score", "decision", "failed", "source", "latency_ms", "segment", "subject", "cost", "outputs"),
)


async def test_packs_have_all_values_of_the_rows(database: str, tmp_path: Path) -> None:
    await database_of_rows(database, tmp_path)
    rng = random.Random(15)
    rows = [old_row(rng, k) for k in range(12_000)]
    async with create_pool(database) as pool:
        await pool.execute("DELETE FROM prediction")
        await pool.copy_records_to_table("prediction", records=rows, columns=_COLUMNS)
        await migrate(pool, MIGRATIONS)
        packs = [Pack(r) for r in await pool.fetch("SELECT * FROM prediction_pack")]
        buckets = set(
            map(tuple, await pool.fetch("SELECT model_id, bucket, partition, pack FROM prediction_bucket"))
        )
    found = {}
    for pack in packs:
        times = pack.event_times.tolist()
        assert len(times) == pack.row["rows"] <= PACK_ROWS
        assert (
            (times[0], times[-1]) == (pack.row["first_us"], pack.row["last_us"]) == (min(times), max(times))
        )
        assert 1 == len({t // 1_000_000 for t in times})
        assert sorted(times) == times
        assert times[-3:][::-1] == pack.row["newest_us"]
        mine = sorted(set(buckets_of(pack.ids).tolist()))
        assert mine == sorted(pack.row["buckets"])
        assert {(1, b, pack.row["partition"], pack.row["id"]) for b in mine} <= buckets
        for i in range(len(times)):
            p = pack.prediction(i)
            found[p.id] = (
                *(1, p.id, p.variant_id, p.variant_id if p.shadow else 0, pack.row["partition"]),
                *(p.arrived_at, p.answer.event_time, p.answer.score, p.answer.decision, p.failed),
                *(p.answer.source, p.latency_ms, p.answer.segment, p.subject),
                None if np.isnan(p.cost) else p.cost,
                None if p.answer.outputs is None else p.answer.outputs.astype("<f8").tobytes(),
            )
    assert len(buckets) == sum(len(p.row["buckets"]) for p in packs)
    assert PACK_ROWS == max(p.row["rows"] for p in packs)
    assert {r[1]: r for r in rows} == found


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
