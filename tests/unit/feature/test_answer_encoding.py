"""Answers encoded as bytes equal the same answers built as messages."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from flywheel.tables import to_dict
from flywheel_common.columns import to_numpy
from flywheel_feature.api.answer_encoding import AnswerEncoder
from flywheel_feature.api.convert_online import answer_to_proto
from flywheel_feature.definitions.model import BatchView, DataType, Feature, VersionRef, View
from flywheel_feature.encoding.row_encoding import DTYPES, RowLayout
from flywheel_feature.online.read_plan import Answer, ReadPlan
from flywheel_feature.windows.applied_offsets import AppliedOffsets
from flywheel_protos.feature.v1 import feature_pb2 as pb
from tests.support.builders.feature_units import object_array, plan_of_view

T = DataType
FEATURES = (
    Feature("a", T.FLOAT64),
    Feature("b", T.INT64),
    Feature("c", T.BOOL),
    Feature("d", T.FLOAT32),
    Feature("e", T.STRING),
    Feature("f", T.FLOAT64_LIST),
    Feature("g", T.FLOAT32_VECTOR, 2),
    Feature("h", T.TIMESTAMP),
    Feature("i", T.BYTES),
)
NUMBERS = (
    Feature("a", T.FLOAT64),
    Feature("b", T.INT64),
    Feature("c", T.FLOAT32),
    Feature("d", T.FLOAT64),
    Feature("a_long_name_of_a_feature", T.FLOAT64),
    Feature("eee", T.BOOL),
    Feature("fff", T.INT64),
    Feature("gggg", T.TIMESTAMP),
)


def plan_of(features: list[str], of: tuple[Feature, ...] = FEATURES) -> ReadPlan:
    view = View("default", "v", "e", BatchView("s", of), version=3, features=of, ttl=1000)
    return plan_of_view(view, *features)


@pytest.fixture
def plan() -> ReadPlan:
    return plan_of(["v:*"])


def answer(plan: ReadPlan, rows: int) -> Answer:
    n = 3
    valid = np.array([True, False, True])
    values: dict[str, Any] = {
        "a": np.array([1.5, 9.0, -0.0]),
        "b": np.array([1, 9, -(2**62)]),
        "c": np.array([True, True, False]),
        "d": np.array([1.5, 9.0, 2.5], "f4"),
        "e": object_array("x", "", "ü"),
        "f": object_array([1.0], [], [2.0, 3.0]),
        "g": np.array([[1, 2], [0, 0], [3, 4]], "f4"),
        "h": np.array([5, 9, 7]),
        "i": object_array(b"\0", b"", b"yz"),
    }
    columns = {name: (array, valid) for name, array in values.items()}
    stored = RowLayout(FEATURES).encode(columns, np.array([11, 12, 13]), np.array([11, 12, 13]))
    blobs = [*stored, None][:rows] + [None] * (rows - n - 1)
    return plan.decode(blobs, np.full(rows, 20, np.int64), {})


@pytest.mark.parametrize("rows", [1, 2, 4, 9, 200])
def test_encoded_bytes_equal_the_serialized_message(plan: ReadPlan, rows: int) -> None:
    given = answer(plan, rows)
    message = pb.GetOnlineFeaturesResponse.FromString(AnswerEncoder(plan).encode(given))
    wanted = answer_to_proto(given, plan, pb.ANSWER_LAYOUT_COLUMNS)
    assert to_dict(message.features) == to_dict(wanted.features)
    assert [c.data_type for c in message.features.columns] == [c.data_type for c in wanted.features.columns]
    for field in ("statuses", "event_times", "view_versions", "feature_set"):
        assert getattr(message, field) == getattr(wanted, field)


def test_a_part_of_a_batch_is_encoded_like_a_single_answer(plan: ReadPlan) -> None:
    whole = answer(plan, 4)
    encoder = AnswerEncoder(plan)
    part = pb.GetOnlineFeaturesResponse.FromString(encoder.encode(whole.rows(2, 4)))
    assert to_dict(part.features)["v__a"] == [-0.0, None]
    assert to_dict(part.features)["v__e"] == ["ü", None]
    assert list(part.statuses[:2]) == [1, 3]


def test_applied_offsets_are_lists_of_partition_and_next_offset(plan: ReadPlan) -> None:
    whole = answer(plan, 4)
    whole.applied = (
        AppliedOffsets(
            VersionRef("w", 2), np.array([0, 1, 1, 3, 3]), np.array([[0, 7], [0, 9], [3, 2**52]], np.int64)
        ),
    )
    for given, wanted in (
        (whole, [[0, 7], [], [0, 9, 3, 2**52], []]),
        (whole.rows(1, 3), [[], [0, 9, 3, 2**52]]),
    ):
        encoded = pb.GetOnlineFeaturesResponse.FromString(AnswerEncoder(plan).encode(given))
        assert (
            encoded.applied_offsets == answer_to_proto(given, plan, pb.ANSWER_LAYOUT_COLUMNS).applied_offsets
        )
        (column,) = encoded.applied_offsets.columns
        values, valid = to_numpy(column, len(wanted))
        assert (column.name, wanted, True) == ("w@2", [v.tolist() for v in values], bool(valid.all()))


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("stale", [False, True])
def test_columns_with_names_of_any_length_hold_their_values(parts: int, stale: bool) -> None:
    read = plan_of(["v:*"], NUMBERS)
    rows = 20 * parts
    columns = {
        f.name: ((np.arange(rows) * (i + 3) % 251).astype(DTYPES[f.data_type]), np.ones(rows, np.bool_))
        for i, f in enumerate(NUMBERS)
    }
    event = np.arange(1, rows + 1)
    is_stale = np.arange(rows) % 3 == 0 if stale else np.zeros(rows, np.bool_)
    blobs = RowLayout(NUMBERS).encode(columns, event, event)
    whole = read.decode(blobs, event + np.where(is_stale, 1001, 1000), {})
    for i, encoded in enumerate(AnswerEncoder(read).encode_parts(whole, [20] * parts)):
        message = pb.GetOnlineFeaturesResponse.FromString(encoded)
        here = slice(20 * i, 20 * i + 20)
        assert {f"v__{name}": values[here].tolist() for name, (values, _) in columns.items()} == to_dict(
            message.features
        )
        assert [4 if old else 1 for old in is_stale[here]] * len(NUMBERS) == list(message.statuses)
        assert event[here].tolist() == np.frombuffer(message.event_times, "<i8").tolist()


@pytest.mark.parametrize("sizes", [[1, 1, 1, 1], [2, 2], [1, 2, 1], [4], [0, 3, 1], [1, 3, 0]])
@pytest.mark.parametrize("features", [["v:*"], ["v:h", "v:a", "v:b"], ["v:b"], ["v:c", "v:a"], ["v:d"]])
def test_a_batch_is_split_into_the_rows_of_each_request(sizes: list[int], features: list[str]) -> None:
    read = plan_of(features)
    whole = answer(read, 4)
    messages = AnswerEncoder(read).encode_parts(whole, sizes)
    low = 0
    for size, message in zip(sizes, messages, strict=True):
        wanted = answer_to_proto(whole.rows(low, low + size), read, pb.ANSWER_LAYOUT_COLUMNS)
        got = pb.GetOnlineFeaturesResponse.FromString(message)
        low += size
        assert got.statuses == wanted.statuses
        assert got.event_times == wanted.event_times
        assert size == got.features.row_count
        if size:
            assert to_dict(wanted.features) == to_dict(got.features)
            assert [c.name for c in wanted.features.columns] == [c.name for c in got.features.columns]
