"""Two stream workers, one of which is killed every two seconds: the final state equals a recomputation.

FLYWHEEL_SOAK_EVENTS=200000 makes it a long run (`make soak SUITE=feature`).
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest

import flywheel as fw
from flywheel.tables import to_dict
from flywheel_feature.store.s3.tables import S3Tables
from flywheel_local.s3 import S3
from flywheel_protos.feature.v1 import feature_pb2 as pb
from tests.support.eventually import eventually

EVENTS = int(os.environ.get("FLYWHEEL_SOAK_EVENTS", "30000"))
KILL_SECONDS = 2.0
ROWS_PER_PUSH = max(20, EVENTS // 4_000)
T0 = datetime(2013, 1, 1, tzinfo=UTC)
SCHEMA = {"carrier": fw.STRING, "origin": fw.STRING, "at": fw.TIMESTAMP, "delay": fw.FLOAT64}
CARRIERS = [f"C{i:02}" for i in range(40)]
ORIGINS = [f"A{i}" for i in range(7)]
WINDOWS = {"1d": 1, "7d": 7, "30d": 30}


def definitions() -> Any:
    landings = fw.StreamSource("landings", SCHEMA, timestamp="at")
    views = []
    for name in ("carrier", "origin"):
        entity = fw.Entity(name, {name: fw.STRING})
        aggregations = []
        for w in WINDOWS:
            aggregations += [fw.count(w, name=f"n_{w}"), fw.total("delay", w, name=f"sum_{w}")]
        aggregations += [fw.std("delay", "7d", name="std"), fw.last("delay", "7d", name="latest")]
        views.append(fw.StreamView(f"by_{name}", entity, landings, aggregations, tile="1h"))
    return fw.compile_definitions([*views, fw.FeatureSet("both", ["by_carrier:*", "by_origin:*"])], "default")


def make_events() -> pl.DataFrame:
    dice = np.random.default_rng(11)
    # Out of order by up to six hours over forty days; unique times, so that the latest is known without
    # looking at ids.
    seconds = np.arange(EVENTS) * (40 * 86_400 / EVENTS) + dice.integers(0, 6 * 3600, EVENTS)
    micros = (seconds * 1e6).astype(np.int64) // EVENTS * EVENTS + np.arange(EVENTS)
    return pl.DataFrame(
        {
            "carrier": dice.choice(CARRIERS, EVENTS),
            "origin": dice.choice(ORIGINS, EVENTS),
            "at": pl.Series(micros + int(T0.timestamp()) * 1_000_000).cast(pl.Datetime("us", "UTC")),
            "delay": dice.integers(-20, 120, EVENTS).astype(np.float64),
        }
    )


def recomputed(events: pl.DataFrame, key: str, names: list[str], as_of: datetime) -> dict[str, list[Any]]:
    """Windows computed by Polars from the events, without code of the service."""
    hour = int(as_of.timestamp()) // 3600
    tile = events.get_column("at").dt.epoch("s") // 3600
    wanted: dict[str, list[Any]] = {}
    for w, days in WINDOWS.items():
        inside = events.filter((tile > hour - 24 * days) & (tile <= hour))
        by = {n: inside.filter(pl.col(key) == n) for n in names}
        wanted[f"by_{key}__n_{w}"] = [g.height for g in by.values()]
        wanted[f"by_{key}__sum_{w}"] = [
            g.get_column("delay").sum() if g.height else None for g in by.values()
        ]
        if w == "7d":
            wanted[f"by_{key}__std"] = [g.get_column("delay").std(ddof=0) for g in by.values()]
            wanted[f"by_{key}__latest"] = [g.sort("at").get_column("delay")[-1] for g in by.values()]
    return wanted


async def applied(client: fw.Client, positions: list[pb.AppliedOffset]) -> None:
    """Wait until the positions are applied; polls slowly, as the workers need the CPU."""
    wanted = {p.partition: p.next_offset for p in positions}
    while True:
        answer = await client.feature.GetFreshness(pb.GetFreshnessRequest(parent="projects/default"))
        reached = {a.partition: a.next_offset for f in answer.freshness for a in f.applied}
        if all(reached.get(p, 0) >= offset for p, offset in wanted.items()):
            return
        await asyncio.sleep(0.5)


def equal(got: list[Any], wanted: list[Any]) -> bool:
    return got == [w if w is None else pytest.approx(w, rel=1e-9) for w in wanted]


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_killed_stream_workers_leave_the_state_of_all_events(
    client: fw.Client, workers: Any, environment: dict[str, str], bucket: str, s3: S3
) -> None:
    workers.environment["FLYWHEEL_FEATURE_STREAM_BATCH_RECORDS"] = "40"
    await client.apply(definitions())
    events = make_events()
    wanted: dict[tuple[str, int], int] = {}

    async def push() -> None:
        for low in range(0, EVENTS, ROWS_PER_PUSH):
            chunk = events[low : low + ROWS_PER_PUSH]
            ids = [f"event-{low + i}" for i in range(chunk.height)]
            # Every tenth push is repeated, as by a client that lost the answer.
            for _ in range(2 if low // ROWS_PER_PUSH % 10 == 0 else 1):
                answer = await client.push("landings", chunk, SCHEMA, ids=ids)
                wanted.update({(o.source, o.partition): o.next_offset for o in answer.offsets})

    kills = 0
    members: list[Any] = [None, None]

    def start(place: int) -> None:
        workers.environment["FLYWHEEL_FEATURE_STREAM_MEMBER"] = f"member-{place}"
        members[place] = workers.start()

    async def kill() -> None:
        nonlocal kills
        while True:
            await asyncio.sleep(KILL_SECONDS)
            await asyncio.to_thread(workers.kill, members[kills % 2])
            start(kills % 2)
            kills += 1

    start(0)
    start(1)
    started = time.monotonic()
    killing = asyncio.create_task(kill())
    await push()
    pushed_after = time.monotonic() - started
    print(f"pushed after {pushed_after:.1f} s, {kills} kills")
    positions = [pb.AppliedOffset(source=s, partition=p, next_offset=o) for (s, p), o in wanted.items()]
    await applied(client, positions)
    applied_after = time.monotonic() - started
    killing.cancel()

    as_of = events.get_column("at").max() + timedelta(seconds=1)  # type: ignore[operator]
    dice = random.Random(3)
    for moment in (as_of, as_of + timedelta(days=2)):
        answer = await client.online_features(
            "both", {"carrier": CARRIERS, "origin": [dice.choice(ORIGINS) for _ in CARRIERS]}, as_of=moment
        )
        got = to_dict(answer.features)
        for name, values in recomputed(events, "carrier", CARRIERS, moment).items():
            assert equal(got[name], values), name
        answer = await client.online_features(
            "both", {"carrier": CARRIERS[:7], "origin": ORIGINS}, as_of=moment
        )
        got = to_dict(answer.features)
        for name, values in recomputed(events, "origin", ORIGINS, moment).items():
            assert equal(got[name], values), name

    async def is_archived() -> bool:
        fresh = await client.feature.GetFreshness(pb.GetFreshnessRequest(parent="projects/default"))
        return sum(f.archived_events for f in fresh.freshness) == EVENTS

    await eventually(is_archived, within=120, every=0.2)
    tables = S3Tables.connect(
        endpoint=s3.endpoint, access_key=s3.access_key, secret_key=s3.secret_key, bucket=bucket
    )
    archived = tables.read(f"s3://{bucket}/sources/default/landings/", ["__event_id", "delay"])
    # Unregistered files of killed members contain events again, so that only distinct ids are counted.
    assert archived.get_column("__event_id").n_unique() == EVENTS
    print(f"{EVENTS:,} events, {kills} kills, applied after {applied_after:.1f} s")
