"""Push targets and streams of pushes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from prometheus_client import REGISTRY

import flywheel as fw
from flywheel.tables import to_dict
from flywheel_common.errors import InvalidArgument
from flywheel_feature.store.redis.connection import RedisPipe
from flywheel_feature.store.s3.tables import S3Tables
from flywheel_local.redis import Redis
from flywheel_protos.feature.v1 import feature_pb2 as pb
from flywheel_protos.feature.v1 import training_set_pb2 as ts
from tests.support.eventually import eventually

T0 = datetime(2013, 3, 1, 12, tzinfo=UTC)
SCHEMA = {"tailnum": fw.STRING, "at": fw.TIMESTAMP, "known_at": fw.TIMESTAMP, "weight": fw.FLOAT64}
plane = fw.Entity("plane", {"tailnum": fw.STRING})
weighings = fw.StreamSource("weighings", {k: v for k, v in SCHEMA.items() if k != "known_at"}, timestamp="at")
recent = fw.StreamView("recent", plane, weighings, [fw.count("1h", name="n")])
pytestmark = pytest.mark.timeout(90)


def definitions(bucket: str, ttl: str | None = None) -> Any:
    source = fw.ParquetSource(
        "weights", SCHEMA, timestamp="at", created="known_at", uri=f"s3://{bucket}/weights/"
    )
    facts = fw.BatchView("facts", plane, source, {"weight": fw.FLOAT64}, ttl=ttl)
    return fw.compile_definitions([recent, facts, fw.FeatureSet("all", ["facts:weight"])], "default")


@pytest.fixture
def tables(tables: S3Tables, bucket: str) -> S3Tables:
    """Tables with one row of weights."""
    tables.write(f"s3://{bucket}/weights/a.parquet", pl.DataFrame(row("N1", 0, 1.0)))
    return tables


def row(tailnum: str, hours: float, weight: float, known: float | None = None) -> dict[str, list[Any]]:
    at = T0 + timedelta(hours=hours)
    known_at = at if known is None else T0 + timedelta(hours=known)
    return {"tailnum": [tailnum], "at": [at], "known_at": [known_at], "weight": [weight]}


async def online(client: fw.Client, *tailnums: str) -> list[float | None]:
    answer = await client.online_features("all", {"tailnum": list(tailnums)}, as_of=T0 + timedelta(days=9))
    return list(to_dict(answer.features)["facts__weight"])


async def trained_on(client: fw.Client, tables: S3Tables, bucket: str, *tailnums: str) -> list[float | None]:
    """The values in a training set nine days later."""
    late = [T0 + timedelta(days=9)] * len(tailnums)
    spine = pl.DataFrame({"tailnum": list(tailnums), "at": late, "label": [1.0] * len(tailnums)})
    tables.write(f"s3://{bucket}/spine.parquet", spine)
    built = await client.build_training_set(
        "all",
        ts.Spine(
            file=ts.FileSpine(uri=f"s3://{bucket}/spine.parquet", timestamp_field="at", label_field="label")
        ),
    )
    found = tables.read(built.uri, ["tailnum", "facts__weight"])
    by_plane = dict(found.rows())
    return [by_plane[t] for t in tailnums]


async def test_rows_go_to_the_push_target_and_durable_is_the_default(
    client: fw.Client, tables: S3Tables, bucket: str, redis: Redis
) -> None:
    await client.apply(definitions(bucket))
    await client.materialize("facts")
    await client.push("views/facts", row("N2", 1, 2.0), SCHEMA, to=pb.PUSH_TARGET_ONLINE)
    await client.push("views/facts", row("N3", 1, 3.0), SCHEMA, to=pb.PUSH_TARGET_OFFLINE)
    await client.push("views/facts", row("N4", 1, 4.0), SCHEMA, to=pb.PUSH_TARGET_ONLINE_AND_OFFLINE)
    await client.push("views/facts", row("N1", 1, 5.0), SCHEMA)
    names = ("N1", "N2", "N3", "N4")
    assert await online(client, *names) == [5.0, 2.0, None, 4.0]
    assert await trained_on(client, tables, bucket, *names) == [5.0, None, 3.0, 4.0]
    # The next materialization brings offline rows online; rows that were only online are lost with Redis.
    assert (await client.materialize("facts")).progress.done == 3
    assert await online(client, *names) == [5.0, 2.0, 3.0, 4.0]
    redis.flush()
    await client.rebuild_online_store()
    assert await online(client, *names) == await trained_on(client, tables, bucket, *names)
    with pytest.raises(InvalidArgument) as raised:
        rows = {k: v for k, v in row("N1", 1, 5.0).items() if k != "known_at"}
        await client.push("weighings", rows, weighings.schema, to=pb.PUSH_TARGET_ONLINE)
    assert raised.value.reason == "UNSUPPORTED_PUSH_TARGET"


async def test_of_equal_event_times_the_later_created_row_wins(
    client: fw.Client, tables: S3Tables, bucket: str
) -> None:
    await client.apply(definitions(bucket))
    await client.materialize("facts")
    await client.push("views/facts", row("N1", 0, 7.0, known=2), SCHEMA)
    await client.push("views/facts", row("N1", 0, 6.0, known=1), SCHEMA)
    await client.push("views/facts", row("N2", 0, 8.0, known=2), SCHEMA)
    # With both times equal, the last row wins.
    await client.push("views/facts", row("N2", 0, 9.0, known=2), SCHEMA)
    assert await online(client, "N1", "N2") == [7.0, 9.0]
    assert await trained_on(client, tables, bucket, "N1", "N2") == [7.0, 9.0]


async def test_a_stream_of_pushes_is_answered_in_order_despite_a_bad_push(
    client: fw.Client, tables: S3Tables, bucket: str
) -> None:
    await client.apply(definitions(bucket))
    stream = {"tailnum": ["N1"], "at": [T0], "weight": [1.0]}

    async def pushes() -> AsyncIterator[pb.PushFeaturesRequest]:
        for i in range(60):
            if i == 20:
                yield client.push_request("views/ghost", row("N", 0, 1.0), SCHEMA)
            elif i == 30:
                yield client.push_request("views/facts", row("N", 0, float("inf")), SCHEMA)
            elif i % 2:
                yield client.push_request("weighings", stream, weighings.schema, ids=[f"event-{i}"])
            else:
                yield client.push_request("views/facts", row(f"N{i}", 0, float(i)), SCHEMA)

    answers = [answer async for answer in client.push_stream(pushes())]
    assert not [a.error for a in answers if a.error.retryable]
    assert [a.sequence for a in answers] == list(range(60))
    errors = {a.sequence: (a.error.reason, a.error.code) for a in answers if a.HasField("error")}
    assert errors == {20: ("UNKNOWN_VIEW", 5), 30: ("OUT_OF_RANGE", 3)}
    assert all(a.accepted.accepted_count == 1 for a in answers if a.HasField("accepted"))
    assert await online(client, *(f"N{i}" for i in range(0, 60, 2))) == [
        None if i in (20, 30) else float(i) for i in range(0, 60, 2)
    ]
    fresh = await client.feature.GetFreshness(pb.GetFreshnessRequest(parent="projects/default"))
    assert [f.lag_events for f in fresh.freshness if f.name.endswith("weighings")] == [30]


async def test_hits_misses_and_lag_are_metrics_and_rows_expire_after_their_ttl(
    client: fw.Client, tables: S3Tables, bucket: str, redis: Redis, redis_url: str
) -> None:
    await client.apply(definitions(bucket, ttl="1h"))
    view = "projects/default/views/facts/versions/1"

    def reads(result: str) -> float:
        labels = {"view": view, "result": result}
        return REGISTRY.get_sample_value("flywheel_feature_online_reads_total", labels) or 0.0

    hits, misses = reads("hit"), reads("miss")
    await client.push("views/facts", row("N1", 0, 1.0), SCHEMA)
    await online(client, "N1", "N2", "N3")
    assert (reads("hit") - hits, reads("miss") - misses) == (1, 2)
    pipe = RedisPipe(redis_url)
    left = await pipe.call("PTTL", b"default/facts@1{2:N1}")
    await pipe.close()
    # The row is fresh for an hour, STALE for another hour, and then expires.
    assert 7_100_000 < left <= 7_200_000
    gauge = {"view": "projects/default/views/facts"}

    def lag_is_published() -> bool:
        # Other services in this process had a view of the same name.
        lag = REGISTRY.get_sample_value("flywheel_feature_freshness_lag_seconds", gauge)
        return lag is not None and abs(lag - (datetime.now(UTC) - T0).total_seconds()) < 60

    await eventually(lag_is_published, within=25)
