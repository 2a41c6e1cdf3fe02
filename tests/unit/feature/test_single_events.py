"""Events of one row each: decoding them together equals decoding each alone, and poison is isolated."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from flywheel_common.clock import ManualClock
from flywheel_common.errors import InvalidArgument
from flywheel_common.event_time import EventTimeBound
from flywheel_common.kafka.envelope import build_event
from flywheel_common.kafka.record import Record
from flywheel_common.value import from_python
from flywheel_feature.definitions.model import DataType, Field, Source, StreamSource
from flywheel_feature.encoding.event_payloads import from_event, from_single_events, to_event
from flywheel_feature.ingest.stream_worker import _out_of_range, _rows_of
from flywheel_protos.events.v1.event_pb2 import Event
from flywheel_protos.events.v1.source_pb2 import SourceEvent

T = DataType
NOW = datetime(2013, 3, 1, 12, 0, 0, 250_000, tzinfo=UTC)
SOURCE = Source(
    "default",
    "rides",
    kind=StreamSource(),
    created_field="",
    timestamp_field="at",
    schema=(
        Field("at", T.TIMESTAMP),
        Field("driver", T.STRING),
        Field("fare", T.FLOAT64),
        Field("seats", T.INT64),
        Field("late", T.BOOL),
        Field("near", T.FLOAT32),
        Field("blob", T.BYTES),
        Field("stops", T.FLOAT64_LIST),
        Field("place", T.FLOAT32_VECTOR, 2),
    ),
)


def single(number: int, **fields: Any) -> Event:
    values = {"at": NOW + timedelta(seconds=number)} | fields
    payload = SourceEvent(source=SOURCE.name, fields={n: from_python(v) for n, v in values.items()})
    return build_event(payload, source="t", key="0", event_time=NOW, event_id=f"id-{number}")


GOOD = [
    single(
        0,
        driver="ü",
        fare=1.5,
        seats=2,
        late=True,
        near=0.25,
        blob=b"\0x",
        stops=[1.0, 2.0],
        place=[1.0, 2.0],
    ),
    single(1),
    single(2, driver="", fare=3, seats=-(2**62), late=False, stops=[]),
    single(3, fare=None, seats=7, near=2, place=[0.5, -1.0]),
]


def record(offset: int, event: Event) -> Record:
    return Record("t", 0, offset, "", event.SerializeToString(), (), 0, event)


def cells(columns: Any, row: int) -> dict[str, Any]:
    found = {}
    for name, (values, valid) in columns.items():
        value = values[row]
        found[name] = (
            (value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value) if valid[row] else None
        )
    return found


def test_events_decoded_together_equal_events_decoded_alone() -> None:
    columns, ids = from_single_events(GOOD, SOURCE)
    alone = [from_event(event, SOURCE) for event in GOOD]
    assert [a[1][0] for a in alone] == ids
    assert [cells(a[0], 0) for a in alone] == [cells(columns, row) for row in range(len(GOOD))]
    assert {n: v.dtype for n, (v, _) in alone[0][0].items()} == {n: v.dtype for n, (v, _) in columns.items()}


def test_times_are_read_to_the_microsecond() -> None:
    moments = [NOW + timedelta(microseconds=k) for k in range(1, 200)]
    events = [single(i, at=moment) for i, moment in enumerate(moments)]
    wanted = [1_362_139_200_250_000 + k for k in range(1, 200)]
    assert wanted == from_single_events(events, SOURCE)[0]["at"][0].tolist()
    assert wanted == [int(from_event(event, SOURCE)[0]["at"][0][0]) for event in events]


@pytest.mark.parametrize(
    "bad",
    [
        single(9, fare="a lot"),
        single(9, seats=float("inf")),
        single(9, at=None),
        single(9, fare=[1.0]),
        single(9, fare=float("inf")),
        single(9, fare=True),
        single(9, fare=2**53 + 1),
        single(9, seats=2.7),
        single(9, at=1_362_139_200),
        single(9, stops=[1.0, None]),
        single(9, stops=[1.0, float("nan")]),
        single(9, place=[1.0]),
        single(9, driver=3),
        single(9, at=datetime(9999, 12, 31, tzinfo=UTC)),
    ],
)
def test_only_the_invalid_event_is_poison(bad: Event) -> None:
    with pytest.raises(InvalidArgument):
        from_single_events([*GOOD, bad], SOURCE)
    records = [record(10 + i, e) for i, e in enumerate([GOOD[0], bad, *GOOD[1:]])]
    parts, poison, why = _rows_of(records, SOURCE)
    assert [11] == [r.offset for r in poison]
    assert why
    assert [10, 12, 13, 14] == [o for p in parts for o in p[0].tolist()]
    assert ["id-0", "id-1", "id-2", "id-3"] == [i for p in parts for i in p[2]]


def test_convertible_values_decode_the_same_together_and_alone() -> None:
    # Integers for fractions, whole fractions for integers, NaN, texts that end in NUL: other languages send
    # these.
    events = [
        single(0, fare=2, near=3, driver="a\0", blob=b"\0\0"),
        single(1, fare=0.5, near=0.25, seats=4.0),
        single(2, fare=float("nan"), driver=None),
    ]
    columns, _ = from_single_events(events, SOURCE)
    assert [cells(from_event(e, SOURCE)[0], 0) for e in events] == [cells(columns, row) for row in range(3)]
    assert ["a\0", "", ""] == columns["driver"][0].tolist()
    assert [b"\0\0", b"", b""] == columns["blob"][0].tolist()
    assert [2.0, 0.5, 0.0] == columns["fare"][0].tolist()
    assert [True, True, False] == columns["fare"][1].tolist()


def test_poison_among_thousands_is_found_and_order_is_kept() -> None:
    bad = {0, 1, 777, 1999, 2000, 2499}
    records = [record(i, single(i, fare="a lot" if i in bad else 1.0)) for i in range(2500)]
    parts, poison, why = _rows_of(records, SOURCE)
    assert sorted(bad) == [r.offset for r in poison]
    assert "Field 'fare' is a str where FLOAT64 is declared." == why
    kept = [i for i in range(2500) if i not in bad]
    assert kept == [o for p in parts for o in p[0].tolist()]
    assert [f"id-{i}" for i in kept] == [i for p in parts for i in p[2]]


def test_single_events_and_batches_may_alternate() -> None:
    columns, ids = from_single_events(GOOD, SOURCE)
    batch = to_event(SOURCE, columns, [f"b{i}" for i in range(len(ids))], 0)
    parts, poison, _ = _rows_of(
        [record(5, GOOD[0]), record(6, batch), record(8, GOOD[1]), record(9, GOOD[2])], SOURCE
    )
    assert not poison
    assert [[5], [6, 6, 6, 6], [8, 9]] == [p[0].tolist() for p in parts]
    assert ["id-0", "b0", "b1", "b2", "b3", "id-1", "id-2"] == [i for p in parts for i in p[2]]


def test_only_rows_with_refused_times_leave_a_record() -> None:
    # Three honest events, one two days ahead and one whose time was never set, alone and in one batch.
    ahead = [single(3, at=NOW + timedelta(days=2)), single(4, at=datetime(1970, 1, 1, tzinfo=UTC))]
    events = [single(0), ahead[0], single(1), ahead[1], single(2)]
    columns, ids = from_single_events(events, SOURCE)
    batch = to_event(SOURCE, columns, [f"b-{i}" for i in ids], 0)
    records = [*(record(offset, event) for offset, event in enumerate(events)), record(5, batch)]
    parts, poison, _ = _rows_of(records, SOURCE)
    assert not poison

    bound = EventTimeBound(ManualClock(NOW), 300)
    parked, remaining, rows = _out_of_range(records, parts, SOURCE, bound)
    assert rows == 4
    assert [r.offset for r in parked] == [1, 3, 5]
    assert [r.offset for r in remaining] == [5]
    assert remaining[0].event is not None
    assert remaining[0].event.id == batch.id

    kept = {r.offset: r for r in remaining}
    left = [kept.get(r.offset, r) for r in records if r.offset not in {1, 3}]
    parts, poison, _ = _rows_of(left, SOURCE)
    assert not poison
    assert [i for p in parts for i in p[2]] == ["id-0", "id-1", "id-2", "b-id-0", "b-id-1", "b-id-2"]
    assert _out_of_range(left, parts, SOURCE, bound) == ([], [], 0)
    assert [i for r in parked if r.event for i in from_event(r.event, SOURCE)[1]] == [
        "id-3",
        "id-4",
        "b-id-3",
        "b-id-4",
    ]
