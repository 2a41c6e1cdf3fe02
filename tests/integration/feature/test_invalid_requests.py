"""Invalid requests are refused with the documented status and reason, and change nothing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import flywheel as fw
from flywheel.tables import to_dict, to_table
from flywheel_common.errors import FlywheelError, InvalidArgument, NotFound, Unavailable
from flywheel_local.redis import Redis
from flywheel_protos.feature.v1 import feature_pb2 as pb
from flywheel_protos.types.v1 import column_pb2, value_pb2

T0 = datetime(2013, 3, 1, tzinfo=UTC)
plane = fw.Entity("plane", {"tailnum": fw.STRING, "deck": fw.INT64})
SCHEMA = {"tailnum": fw.STRING, "deck": fw.INT64, "at": fw.TIMESTAMP, "weight": fw.FLOAT64}
weighings = fw.StreamSource("weighings", SCHEMA, timestamp="at")
recent = fw.StreamView("recent", plane, weighings, [fw.count("1h", name="n")])
weights = fw.ParquetSource("weights", SCHEMA, timestamp="at", uri="s3://nowhere/weights/")
facts = fw.BatchView("facts", plane, weights, {"weight": fw.FLOAT64})
trip = fw.RequestSource("trip", {"distance": fw.FLOAT64})
computed = fw.OnDemandView("computed", {"half": "distance / 2"}, views=[], requests=[trip])
both = fw.FeatureSet("both", ["facts:weight", "computed:half"])


@pytest.fixture
def rows() -> dict[str, list[Any]]:
    return {"tailnum": ["N1"], "deck": [1], "at": [T0], "weight": [2.5]}


async def apply(client: fw.Client) -> None:
    await client.apply(fw.compile_definitions([recent, facts, computed, both], "default"))


def reading(**changes: Any) -> pb.GetOnlineFeaturesRequest:
    request = pb.GetOnlineFeaturesRequest(
        feature_set="projects/default/featureSets/both",
        entities=to_table({"tailnum": ["N1"], "deck": [1]}),
        request_fields=to_table({"distance": [4.0]}),
    )
    for name, value in changes.items():
        request.ClearField(name)
        if isinstance(value, str):
            setattr(request, name, value)
        elif isinstance(value, list):
            getattr(request, name).extend(value)
        elif value is not None:
            getattr(request, name).CopyFrom(value)
    return request


async def test_invalid_reads_are_refused_with_documented_reasons(client: fw.Client) -> None:
    await apply(client)
    half = column_pb2.Column(name="deck", data_type=value_pb2.DATA_TYPE_INT64, packed=b"\1\2\3")
    text = column_pb2.Column(name="tailnum", data_type=value_pb2.DATA_TYPE_STRING)
    text.strings.values.append("N1")
    cases: list[tuple[pb.GetOnlineFeaturesRequest, type[FlywheelError], str]] = [
        (reading(feature_set="projects/default/featureSets/ghost"), NotFound, "UNKNOWN_FEATURE_SET"),
        (
            reading(feature_set="projects/default/featureSets/both/versions/9"),
            NotFound,
            "UNKNOWN_FEATURE_SET",
        ),
        (reading(feature_set="both"), InvalidArgument, "INVALID_NAME"),
        (reading(feature_set="", parent="projects/default", features=["ghost:x"]), NotFound, "UNKNOWN_VIEW"),
        (
            reading(feature_set="", parent="projects/default", features=["facts:x"]),
            NotFound,
            "UNKNOWN_FEATURE",
        ),
        (reading(feature_set="", parent="projects/default"), InvalidArgument, "NO_FEATURES"),
        (reading(entities=to_table({"tailnum": ["N1"]})), InvalidArgument, "MISSING_JOIN_KEY"),
        (reading(request_fields=None), InvalidArgument, "MISSING_REQUEST_FIELD"),
        (reading(request_fields=to_table({"distance": [1.0, 2.0]})), InvalidArgument, "ROW_COUNT_MISMATCH"),
        (reading(entities=to_table({"tailnum": [1], "deck": [1]})), InvalidArgument, "WRONG_TYPE"),
        (
            reading(entities=column_pb2.Table(row_count=1, columns=[text, half])),
            InvalidArgument,
            "INVALID_COLUMN",
        ),
        (
            reading(entities=to_table({"tailnum": ["N"] * 1001, "deck": [1] * 1001})),
            InvalidArgument,
            "TOO_MANY_ROWS",
        ),
    ]
    for request, kind, reason in cases:
        with pytest.raises(kind) as raised:
            await client.feature.GetOnlineFeatures(request)
        assert raised.value.reason == reason
    answer = await client.feature.GetOnlineFeatures(reading())
    assert to_dict(answer.features) == {"facts__weight": [None], "computed__half": [2.0]}


async def test_invalid_pushes_are_refused_and_write_nothing(
    client: fw.Client, rows: dict[str, list[Any]]
) -> None:
    await apply(client)
    source, view = "projects/default/sources/weighings", "projects/default/views/facts"

    def push(target: str = source, ids: list[str] | None = None, **changes: Any) -> pb.PushFeaturesRequest:
        sent = {**rows, **changes}
        return pb.PushFeaturesRequest(
            target=target,
            rows=to_table({k: v for k, v in sent.items() if v is not None}),
            event_ids=ids or [],
        )

    two = {"tailnum": ["N1", "N2"], "deck": [1, 2], "at": [T0, T0]}
    cases: list[tuple[pb.PushFeaturesRequest, type[FlywheelError], str]] = [
        (push("projects/default/sources/ghost"), NotFound, "UNKNOWN_SOURCE"),
        (push("projects/default/views/ghost"), NotFound, "UNKNOWN_VIEW"),
        (push("projects/default/views/recent"), InvalidArgument, "NOT_A_BATCH_VIEW"),
        (push("projects/default/sources/weights"), InvalidArgument, "NOT_A_STREAM_SOURCE"),
        (push(weight=None), InvalidArgument, "PARTIAL_ROW"),
        (push(view, weight=None), InvalidArgument, "PARTIAL_ROW"),
        (push(colour=["red"]), InvalidArgument, "UNKNOWN_FIELD"),
        (push(weight=["heavy"]), InvalidArgument, "WRONG_TYPE"),
        (push(**two, weight=[1.0, float("-inf")]), InvalidArgument, "OUT_OF_RANGE"),
        (push(view, **two, weight=[1.0, float("inf")]), InvalidArgument, "OUT_OF_RANGE"),
        (push(at=[datetime(9999, 1, 1, tzinfo=UTC)]), InvalidArgument, "OUT_OF_RANGE"),
        (push(at=[datetime.now(UTC) + timedelta(minutes=10)]), InvalidArgument, "OUT_OF_RANGE"),
        (push(at=[datetime(1970, 1, 1, tzinfo=UTC)]), InvalidArgument, "OUT_OF_RANGE"),
        (push(view, at=[datetime(9999, 1, 1, tzinfo=UTC)]), InvalidArgument, "OUT_OF_RANGE"),
        (push(tailnum=["N" * (10 << 20)]), InvalidArgument, "OUT_OF_RANGE"),
        (push(ids=["a", "b"]), InvalidArgument, "ROW_COUNT_MISMATCH"),
        (push(ids=["x" * 500]), InvalidArgument, "OUT_OF_RANGE"),
    ]
    for request, kind, reason in cases:
        with pytest.raises(kind) as raised:
            await client.feature.PushFeatures(request)
        assert raised.value.reason == reason
    fresh = await client.feature.GetFreshness(pb.GetFreshnessRequest(parent="projects/default"))
    assert [f.lag_events for f in fresh.freshness if f.name == source] == [0]
    answer = await client.feature.GetOnlineFeatures(reading())
    assert to_dict(answer.features)["facts__weight"] == [None]


async def test_events_that_no_worker_has_applied_count_as_lag(
    client: fw.Client, rows: dict[str, list[Any]]
) -> None:
    await apply(client)
    for i in range(3):
        await client.push("weighings", rows, SCHEMA, ids=[f"event-{i}"])
    fresh = await client.feature.GetFreshness(pb.GetFreshnessRequest(parent="projects/default"))
    assert [f.lag_events for f in fresh.freshness if f.name.endswith("sources/weighings")] == [3]


async def test_a_pushed_row_is_served_and_older_rows_change_nothing(
    client: fw.Client, rows: dict[str, list[Any]]
) -> None:
    await apply(client)
    for at, weight in ((T0, 1.0), (T0 + timedelta(hours=2), 2.0), (T0 + timedelta(hours=1), 3.0)):
        await client.push("views/facts", {**rows, "at": [at], "weight": [weight]}, SCHEMA)
    answer = await client.feature.GetOnlineFeatures(reading())
    assert to_dict(answer.features)["facts__weight"] == [2.0]


async def test_a_definition_with_an_unknown_reference_applies_nothing(client: fw.Client) -> None:
    message = fw.compile_definitions([recent], "default")
    message.views[0].stream.source = "projects/default/sources/ghost"
    with pytest.raises(InvalidArgument) as raised:
        await client.apply(message)
    assert raised.value.reason == "UNKNOWN_REFERENCE"
    planned = await client.apply(message, plan=True)
    assert [(v.name, v.field) for v in planned.violations] == [
        ("projects/default/views/recent", "stream.source")
    ]
    listed = await client.feature.ListEntities(pb.ListEntitiesRequest(parent="projects/default"))
    assert list(listed.entities) == []


async def test_a_negative_duration_is_a_violation_of_its_field(client: fw.Client) -> None:
    message = fw.compile_definitions([recent, facts], "default")
    (batch,) = [v for v in message.views if v.HasField("batch")]
    (stream,) = [v for v in message.views if v.HasField("stream")]
    batch.ttl.FromSeconds(-1)
    stream.stream.aggregations[0].window.FromSeconds(-3600)
    planned = await client.apply(message, plan=True)
    assert {
        ("projects/default/views/facts", "ttl"),
        ("projects/default/views/recent", "stream.aggregations[0].window"),
    } <= {(v.name, v.field) for v in planned.violations}
    with pytest.raises(InvalidArgument) as raised:
        await client.apply(message)
    assert raised.value.reason == "INVALID_DEFINITION"


async def test_a_request_id_identifies_one_request(client: fw.Client) -> None:
    await apply(client)
    first = pb.MaterializeViewRequest(view="projects/default/views/facts", request_id="one")
    one = await client.feature.MaterializeView(first)
    again = await client.feature.MaterializeView(first)
    assert one.job.name == again.job.name
    other = pb.MaterializeViewRequest(parent="projects/default", request_id="one")
    with pytest.raises(InvalidArgument) as raised:
        await client.feature.MaterializeView(other)
    assert raised.value.reason == "REQUEST_ID_REUSED"


async def test_reads_fail_fast_while_redis_is_down_and_recover_by_themselves(
    client: fw.Client, redis: Redis
) -> None:
    await apply(client)
    await client.feature.GetOnlineFeatures(reading())
    redis.kill()
    with pytest.raises(Unavailable) as raised:
        await client.feature.GetOnlineFeatures(reading(), timeout=5.0)
    assert raised.value.reason == "ONLINE_STORE_DOWN"
    redis.restart()
    answer = await client.feature.GetOnlineFeatures(reading(), timeout=5.0)
    assert to_dict(answer.features)["computed__half"] == [2.0]


async def test_lists_are_paged_in_order_of_names(client: fw.Client) -> None:
    await apply(client)
    first = await client.feature.ListViews(pb.ListViewsRequest(parent="projects/default", page_size=2))
    rest = await client.feature.ListViews(
        pb.ListViewsRequest(parent="projects/default", page_size=2, page_token=first.next_page_token)
    )
    names = [v.name.rpartition("views/")[2] for v in [*first.views, *rest.views]]
    assert names == ["computed/versions/1", "facts/versions/1", "recent/versions/1"]
    assert rest.next_page_token == ""
