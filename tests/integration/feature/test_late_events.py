"""Pushed events that arrive too late, and equal events, count in the same way online and in training sets."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest

import flywheel as fw
from flywheel.tables import to_dict
from flywheel_feature.store.s3.tables import S3Tables
from flywheel_protos.feature.v1.training_set_pb2 import Spine
from tests.support.servers.feature import events_archived

HOUR = timedelta(hours=1)
user = fw.Entity("user", {"k": fw.STRING})
schema = {"k": fw.STRING, "at": fw.TIMESTAMP, "x": fw.FLOAT64}
clicks = fw.StreamSource("clicks", schema, timestamp="at", allowed_lateness="5m")
window = fw.StreamView(
    "recent", user, clicks, [fw.count("6h", name="n"), fw.total("x", "6h", name="x")], tile="5m"
)


@pytest.mark.timeout(120)
async def test_an_event_after_the_allowed_lateness_is_in_no_window(
    client: fw.Client, workers: Any, tables: S3Tables, bucket: str
) -> None:
    workers.start()
    await client.apply(fw.compile_definitions([window, fw.FeatureSet("fs", ["recent:*"])], "default"))
    now = datetime.now(UTC).replace(microsecond=0)

    async def push(age: timedelta, x: float, **ids: Any) -> None:
        rows = {"k": ["K", "K"], "at": [now - age] * 2, "x": [x, x]}
        await client.wait_applied((await client.push("clicks", rows, schema, **ids)).offsets, within=30)

    await push(timedelta(minutes=1), 1.0, ids="auto")  # two events
    await push(timedelta(minutes=1), 10.0)  # equal rows without ids: one event
    await push(3 * HOUR, 100.0, ids="auto")  # two late events
    online = to_dict((await client.online_features("fs", {"k": ["K"]})).features)
    assert {"recent__n": [3], "recent__x": [12.0]} == online
    await events_archived(client, 5)
    uri = f"s3://{bucket}/spine.parquet"
    tables.write(uri, pl.DataFrame({"k": ["K"], "ts": [datetime.now(UTC)]}))
    built = await client.build_training_set("fs", Spine(file={"uri": uri, "timestamp_field": "ts"}))
    rows = tables.read(built.uri, ["recent__n", "recent__x"]).to_dicts()
    assert [{"recent__n": 3, "recent__x": 12.0}] == rows
    assert {"projects/default/views/recent/versions/1": 2} == dict(built.late_events)
