"""Applied definitions, pushed events and materialized tables are served with the expected values."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest

import flywheel as fw
from flywheel.tables import to_dict
from flywheel_feature.store.s3.tables import S3Tables
from tests.support.servers.feature import events_archived

T0 = datetime(2013, 3, 1, 12, tzinfo=UTC)
PRESENT, NULL, NOT_FOUND, STALE = 1, 2, 3, 4

plane = fw.Entity("plane", {"tailnum": fw.STRING})
origin = fw.Entity("origin", {"origin": fw.STRING})
planes_schema = {"tailnum": fw.STRING, "registered_at": fw.TIMESTAMP, "built": fw.FLOAT64, "model": fw.STRING}
departures = fw.StreamSource(
    "departures",
    {"origin": fw.STRING, "tailnum": fw.STRING, "departed_at": fw.TIMESTAMP, "delay": fw.FLOAT64},
    timestamp="departed_at",
)
trip = fw.RequestSource("trip", {"distance": fw.FLOAT64})
airport_now = fw.StreamView(
    "airport_now",
    origin,
    departures,
    [
        fw.mean("delay", "1h", name="delay_1h"),
        fw.count("3h", name="n_3h"),
        fw.std("delay", "3h", name="std_3h"),
        fw.last("delay", "3h", name="latest"),
        fw.last_n("delay", 3, "3h", name="latest_3"),
    ],
    tile="5m",
)


def definitions(bucket: str) -> Any:
    planes = fw.ParquetSource(
        "planes", planes_schema, timestamp="registered_at", uri=f"s3://{bucket}/planes/"
    )
    facts = fw.BatchView("plane_facts", plane, planes, {"built": fw.FLOAT64, "model": fw.STRING}, ttl="365d")
    computed = fw.OnDemandView(
        "computed",
        {"age": "2013.0 - plane_facts__built", "pace": "distance / airport_now__delay_1h"},
        views=[facts, airport_now],
        requests=[trip],
    )
    everything = fw.FeatureSet(
        "everything",
        [
            *("plane_facts:built", "plane_facts:model", "airport_now:delay_1h", "airport_now:n_3h"),
            *("airport_now:std_3h", "airport_now:latest", "airport_now:latest_3"),
            *("computed:age", "computed:pace"),
        ],
    )
    return fw.compile_definitions([facts, airport_now, computed, everything], "default")


def departures_rows(*events: tuple[str, str, int, float | None]) -> dict[str, Any]:
    """(origin, tailnum, minutes after T0, delay)."""
    return {
        "origin": [e[0] for e in events],
        "tailnum": [e[1] for e in events],
        "departed_at": [T0 + timedelta(minutes=e[2]) for e in events],
        "delay": [e[3] for e in events],
    }


SCHEMA = {"origin": fw.STRING, "tailnum": fw.STRING, "departed_at": fw.TIMESTAMP, "delay": fw.FLOAT64}


def statuses(answer: Any, rows: int) -> dict[str, list[int]]:
    found = np.frombuffer(answer.statuses, np.uint8).reshape(-1, rows)
    return {c.name: found[i].tolist() for i, c in enumerate(answer.features.columns)}


@pytest.fixture
def planes_table(tables: S3Tables, bucket: str) -> None:
    frame = pl.DataFrame(
        {
            "tailnum": ["N1", "N1", "N2", "N3"],
            "registered_at": [T0 - timedelta(days=d) for d in (30, 10, 700, 5)],
            "built": [1999.0, 2001.0, 1985.0, None],
            "model": ["old", "new", "jet", None],
        }
    )
    tables.write(f"s3://{bucket}/planes/part.parquet", frame)


@pytest.mark.timeout(90)
async def test_values_of_every_kind_of_view_are_served(
    client: fw.Client, workers: Any, bucket: str, planes_table: None
) -> None:
    workers.start()
    await client.apply(definitions(bucket))
    job = await client.materialize("plane_facts")
    assert job.progress.done == 4
    pushed = await client.push(
        "departures",
        departures_rows(
            ("JFK", "N1", 0, 10.0), ("JFK", "N2", 30, 20.0), ("JFK", "N3", 40, None), ("LGA", "N2", -170, 5.0)
        ),
        SCHEMA,
        ids=["a", "b", "c", "d"],
    )
    await client.wait_applied(pushed.offsets, within=30)
    answer = await client.online_features(
        "everything",
        {"tailnum": ["N1", "N2", "N3", "N9"], "origin": ["JFK", "LGA", "JFK", "EWR"]},
        {"distance": [300.0, 300.0, 300.0, 300.0]},
        as_of=T0 + timedelta(minutes=45),
    )
    values = to_dict(answer.features)
    assert values["plane_facts__built"] == [2001.0, 1985.0, None, None]
    assert values["plane_facts__model"] == ["new", "jet", None, None]
    assert values["airport_now__delay_1h"] == [15.0, None, 15.0, None]
    assert values["airport_now__n_3h"] == [3, 0, 3, None]
    assert values["airport_now__std_3h"] == [5.0, None, 5.0, None]
    assert values["airport_now__latest"] == [20.0, None, 20.0, None]
    assert values["airport_now__latest_3"] == [[20.0, 10.0], None, [20.0, 10.0], None]
    assert values["computed__age"] == [12.0, 28.0, None, None]
    assert values["computed__pace"] == [20.0, None, 20.0, None]
    found = statuses(answer, 4)
    assert found["plane_facts__built"] == [PRESENT, STALE, NULL, NOT_FOUND]
    assert found["airport_now__n_3h"] == [PRESENT, PRESENT, PRESENT, NOT_FOUND]
    assert found["airport_now__delay_1h"] == [PRESENT, NULL, PRESENT, NOT_FOUND]
    assert found["computed__age"] == [PRESENT, STALE, NULL, NULL]
    assert answer.feature_set == "projects/default/featureSets/everything/versions/1"
    times = np.frombuffer(answer.event_times, "<i8").reshape(-1, 4)
    by_view = dict(zip(answer.view_versions, times.tolist(), strict=True))
    newest = int((T0 + timedelta(minutes=40)).timestamp() * 1e6)
    assert by_view["projects/default/views/airport_now/versions/1"][0] == newest


@pytest.mark.timeout(90)
async def test_repeated_events_are_applied_and_archived_once(
    client: fw.Client, workers: Any, bucket: str, planes_table: None
) -> None:
    workers.start()
    await client.apply(definitions(bucket))
    rows = departures_rows(("JFK", "N1", 0, 10.0), ("JFK", "N2", 1, 30.0))
    for _ in range(3):
        pushed = await client.push("departures", rows, SCHEMA, ids=["a", "b"])
    await client.wait_applied(pushed.offsets, within=30)
    answer = await client.online_features(
        "everything",
        {"tailnum": ["N1"], "origin": ["JFK"]},
        {"distance": [1.0]},
        as_of=T0 + timedelta(minutes=2),
    )
    values = to_dict(answer.features)
    assert values["airport_now__n_3h"] == [2]
    assert values["airport_now__delay_1h"] == [20.0]

    await events_archived(client, 2)
