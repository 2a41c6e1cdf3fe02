"""Reads with as_of in the past serve nothing of its future, and agree with offline joins."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from flywheel.tables import to_dict
from flywheel_feature.api.answer_encoding import AnswerEncoder
from flywheel_feature.api.convert_online import answer_to_proto, to_lookup
from flywheel_feature.definitions.catalog import Catalog
from flywheel_feature.definitions.model import (
    BatchView,
    DataType,
    Entity,
    Expression,
    Feature,
    Field,
    OnDemandView,
    VersionRef,
    View,
)
from flywheel_feature.encoding.row_encoding import RowLayout
from flywheel_feature.encoding.same_length_values import SameLengthReply
from flywheel_feature.online.lookup import SharedRead
from flywheel_feature.online.read_plan import ReadPlan, plan_of_features
from flywheel_feature.online.view_reads import NOT_FOUND, NOT_YET_VALID, NULL, PRESENT, STALE
from flywheel_protos.feature.v1 import feature_pb2 as pb
from flywheel_protos.types.v1 import column_pb2
from tests.support.builders.feature_units import object_array

T = DataType
FEATURES = (
    Feature("x", T.FLOAT64),
    Feature("n", T.INT64),
    Feature("b", T.BOOL),
    Feature("s", T.STRING),
    Feature("l", T.FLOAT64_LIST),
    Feature("v", T.FLOAT32_VECTOR, 2),
)
SECRET = (1.5, 77, True, "secret", [2.5], [3.0, 4.0])


def plan(*features: str, ttl: int = 0) -> ReadPlan:
    """The plan of a batch view `v` with every kind of feature, and of an on-demand view `d` that reads it."""
    view = View("p", "v", "e", BatchView("s", FEATURES), version=1, features=FEATURES, ttl=ttl)
    outputs = (Feature("twice", T.FLOAT64), Feature("or_zero", T.INT64), Feature("text", T.STRING))
    sql = ("v__x * 2", "COALESCE(v__n, 0)", "COALESCE(v__s, 'none')")
    expressions = tuple(Expression(f, s) for f, s in zip(outputs, sql, strict=True))
    computed = View(
        "p",
        "d",
        "",
        OnDemandView(("v",), (), expressions),
        version=1,
        features=outputs,
        inputs=(VersionRef("v", 1),),
    )
    views = {v.id: v for v in (view, computed)}
    entity = Entity("p", "e", (Field("k", T.STRING),))
    catalog = Catalog("p", 1, {"e": entity}, {}, {v.ref: v for v in views.values()}, {}, views)
    return plan_of_features(catalog, features or ["v:*"])


def blobs(*times: tuple[int, int], null: bool = False) -> list[bytes]:
    """One row per (event time, created time), all with the values SECRET, or nulls."""
    rows = len(times)
    valid = np.full(rows, not null)
    x, n, b, s, listed, vector = SECRET
    columns: dict[str, Any] = {
        "x": np.full(rows, x),
        "n": np.full(rows, n),
        "b": np.full(rows, b),
        "s": object_array(*[s] * rows),
        "l": object_array(*[listed] * rows),
        "v": np.array([vector] * rows, "f4"),
    }
    event, created = (np.array(t, np.int64) for t in zip(*times, strict=True))
    return RowLayout(FEATURES).encode({k: (v, valid) for k, v in columns.items()}, event, created)


def until(*times: int) -> Any:
    return np.array(times, np.int64)


@pytest.mark.parametrize("layout", [pb.ANSWER_LAYOUT_COLUMNS, pb.ANSWER_LAYOUT_ROWS])
def test_a_row_with_a_later_event_or_created_time_is_hidden(layout: int) -> None:
    read = plan()
    stored = [*blobs((10, 10), (11, 11), (9, 11), (11, 9)), None]
    answer = read.decode(stored, until(*[10] * 5), {}, until(*[10] * 5))
    assert [[PRESENT, NOT_YET_VALID, NOT_YET_VALID, NOT_YET_VALID, NOT_FOUND]] * 6 == answer.statuses.tolist()
    assert [[10, 0, 0, 0, 0]] == answer.event_times.tolist()
    if layout == pb.ANSWER_LAYOUT_ROWS:
        rows = answer_to_proto(answer, read, layout).rows
        assert [pb.FEATURE_STATUS_NOT_YET_VALID] * 6 == list(rows[1].statuses.values())
        assert all(value.WhichOneof("kind") is None for value in rows[1].values.values())
        return
    message = pb.GetOnlineFeaturesResponse.FromString(AnswerEncoder(read).encode(answer))
    values = to_dict(message.features)
    assert [*[SECRET[0]], *[None] * 4] == values["v__x"]
    assert [[name, *[None] * 4] for name in values] == [[name, *v[1:]] for name, v in values.items()]


def test_no_byte_of_a_hidden_value_is_sent() -> None:
    read = plan()
    encoder = AnswerEncoder(read)
    hidden = encoder.encode(read.decode(blobs((11, 11)), until(10), {}, until(10)))
    null = encoder.encode(read.decode(blobs((0, 0), null=True), until(10), {}, until(10)))
    assert null.replace(bytes([NULL]) * 6, bytes([NOT_YET_VALID]) * 6) == hidden


def test_a_read_of_now_serves_rows_that_the_writer_wrote() -> None:
    answer = plan().decode(blobs((11, 11)), until(10), {})
    assert [[PRESENT]] * 6 == answer.statuses.tolist()


def test_on_demand_features_of_a_hidden_row_are_unknown() -> None:
    read = plan("d:*", "v:x")
    stored = [*blobs((10, 10), (11, 11)), None]
    answer = read.decode(stored, until(10, 10, 10), {}, until(10, 10, 10))
    assert [
        [PRESENT, NOT_YET_VALID, NULL],
        [PRESENT, NOT_YET_VALID, PRESENT],
        [PRESENT, NOT_YET_VALID, PRESENT],
        [PRESENT, NOT_YET_VALID, NOT_FOUND],
    ] == answer.statuses.tolist()
    message = pb.GetOnlineFeaturesResponse.FromString(AnswerEncoder(read).encode(answer))
    assert {
        "d__twice": [3.0, None, None],
        "d__or_zero": [77, None, 0],
        "d__text": ["secret", None, "none"],
        "v__x": [1.5, None, None],
    } == to_dict(message.features)


def test_rows_that_redis_sent_in_one_piece_are_hidden() -> None:
    """They stay in the reply, with the heads of the values between them."""
    numbers = (Feature("x", T.FLOAT64), Feature("b", T.BOOL))
    layout = RowLayout(numbers)
    times = until(10, 11, 10)
    columns = {"x": (np.array([1.0, 2.0, 3.0]), np.ones(3, np.bool_)), "b": (np.ones(3, np.bool_),) * 2}
    values = layout.encode(columns, times, times)
    reply = SameLengthReply(3)
    assert reply.add(b"*3\r\n" + b"".join(b"$%d\r\n%s\r\n" % (len(v), v) for v in values))
    rows = layout.decode(reply.values)
    later = rows.hide_later_than(until(10, 10, 10))
    assert later is not None
    assert [False, True, False] == later.tolist()
    assert [[1.0, 0.0, 3.0], [True, False, True]] == [values.tolist() for values, _ in rows.columns]
    assert [[True, True], [False, False], [True, True]] == rows.valid.tolist()
    assert (values, reply.values[1]) == (list(reply.values), values[1]), "the reply is unchanged"


def test_a_stale_row_is_stale_and_a_later_row_is_not_yet_valid() -> None:
    answer = plan(ttl=5).decode(blobs((10, 12), (10, 12)), until(11, 16), {}, until(11, 16))
    assert [NOT_YET_VALID, STALE] == answer.statuses[0].tolist()


class Rows:
    """A store with one row for every key."""

    async def read(self, keys: Any) -> list[bytes | None]:
        return list(blobs(*[(11, 11)] * len(keys)))


def request(as_of: int | None) -> pb.GetOnlineFeaturesRequest:
    keys = column_pb2.Column(name="k", data_type=T.STRING, strings={"values": ["a"]})  # type: ignore[arg-type]
    message = pb.GetOnlineFeaturesRequest(entities={"row_count": 1, "columns": [keys]})
    if as_of is not None:
        message.as_of.FromMicroseconds(as_of)
    return message


async def test_each_request_of_a_batch_has_its_own_limit() -> None:
    read = plan("v:x")
    shared = SharedRead(read, Rows(), AnswerEncoder)
    lookups = [to_lookup(request(as_of), read) for as_of in (10, None, 11)]
    answers = await asyncio.gather(*(shared.read(lookup) for lookup in lookups))
    found = [pb.GetOnlineFeaturesResponse.FromString(answer).statuses for answer in answers]
    assert [[NOT_YET_VALID], [PRESENT], [PRESENT]] == [list(statuses) for statuses in found]
