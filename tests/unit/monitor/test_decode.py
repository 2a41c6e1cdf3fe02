"""Decoding of prediction and outcome batches; malformed batches are rejected."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import Message

from flywheel_common.clock import ManualClock
from flywheel_common.columns import from_lists, from_texts, to_table
from flywheel_common.errors import InvalidArgument
from flywheel_common.event_time import EventTimeBound
from flywheel_common.kafka import topics
from flywheel_common.kafka.envelope import build_event, parse_event, payload_of
from flywheel_common.kafka.poison import Batch, PoisonError
from flywheel_common.kafka.record import Record
from flywheel_monitor.ingest import decode
from flywheel_monitor.ingest.batches import PredictionColumns
from flywheel_monitor.ingest.consumer import EventHandler
from flywheel_monitor.ingest.similar_records import FEWEST
from flywheel_monitor.windows.output import Output
from flywheel_protos.events.v1 import prediction_pb2
from flywheel_protos.types.v1.column_pb2 import Column
from flywheel_protos.types.v1.value_pb2 import DATA_TYPE_INT64, DATA_TYPE_INT64_LIST

VERSION = "projects/p/models/late/versions/1"


@dataclass
class Counting:
    """Ingestion that lists what it counts; all models are BINARY."""

    counted: list[Any]

    def known_output(self, model_version: str) -> Output | None:
        return None

    async def outputs(self, model: str) -> dict[str, Output]:
        return {VERSION: Output()}

    async def knows_model(self, model: str) -> bool:
        return True

    async def add_predictions(self, partition: int, batches: list[PredictionColumns]) -> None:
        self.counted.extend(batches)

    async def add_outcomes(self, partition: int, batches: list[Any]) -> None:
        self.counted.extend(batches)


def good_batch() -> prediction_pb2.PredictionBatch:
    return prediction_pb2.PredictionBatch(
        model="projects/p/models/late",
        model_version=VERSION,
        release="projects/p/models/late/releases/1",
        role=1,
        prediction_ids=["a", "b"],
        event_times=(1).to_bytes(8, "little") * 2,
        scores=bytes(16),
        decisions=bytes(2),
        sources=b"\1\1",
        latencies_ms=bytes(8),
    )


def test_a_good_batch_is_decoded() -> None:
    columns = decode.prediction_columns(good_batch(), b"")
    assert (columns.ids, columns.event_times[0], columns.shadow) == (
        ["a", "b"],
        int.from_bytes(b"\1" + bytes(7), "little"),
        False,
    )


def test_class_names_of_a_binary_model_are_ignored() -> None:
    batch = good_batch()
    batch.class_names.extend(["no", "yes"])
    assert Output() == decode.prediction_columns(batch, b"").output


@pytest.mark.parametrize(
    "damage",
    [
        {"scores": bytes(15)},
        {"event_times": bytes(8)},
        {"sources": b"\1\7"},
        {"role": 0},
        {"model": "projects/p/models/other"},
        {"model_version": "late/1"},
        {"prediction_ids": ["a", ""]},
        {"error_reasons": ["x"]},
        {"segments": ["x", "y", "z"]},
        {"event_times": b"\xff" * 7 + b"\x7f" + bytes(8)},
        {"output_kind": 9},
        {"output_kind": 3, "score_width": 2, "scores": bytes(32)},
        {"output_kind": 2, "class_names": ["x", "y"]},
        {"output_kind": 2, "class_names": ["x", "x"], "score_width": 2, "scores": bytes(32)},
        {"output_kind": 4, "score_width": 3},
        {"costs": np.full(2, -1.0, "<f4").tobytes()},
        {"subjects": ["x"]},
    ],
)
def test_a_malformed_prediction_batch_is_rejected(damage: dict[str, object]) -> None:
    batch = good_batch()
    for field, value in damage.items():
        if isinstance(value, list):
            del getattr(batch, field)[:]
            getattr(batch, field).extend(value)
        else:
            setattr(batch, field, value)
    with pytest.raises(InvalidArgument):
        decode.prediction_columns(batch, b"")


NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
BOUND = EventTimeBound(ManualClock(NOON), 300)


def event_record(offset: int, payload: Message) -> Record:
    event = build_event(payload, source="test", key="0", event_time=datetime(2026, 1, 1, tzinfo=UTC))
    topic = topics.PREDICTION_LOGGED
    if isinstance(payload, prediction_pb2.OutcomeBatch):
        topic = topics.OUTCOME_RECORDED
    return Record(topic, 0, offset, "0", event.SerializeToString(), (), 0, event)


def test_only_rows_with_a_nul_character_are_poison() -> None:
    batch = good_batch()
    del batch.prediction_ids[:]
    batch.prediction_ids.extend(["a", "b\0"])
    batch.event_times = np.array([7, 9], "<i8").tobytes()
    batch.features.CopyFrom(to_table([from_texts("origin", ["JFK", "LGA"])]))
    counted: list[Any] = []
    handler = EventHandler(lambda conn: Counting(counted), BOUND)  # type: ignore[arg-type, return-value]
    records = [event_record(4, good_batch()), event_record(5, batch)]
    with pytest.raises(PoisonError) as caught:
        asyncio.run(handler.handle(None, records))  # type: ignore[arg-type]
    assert [] == counted
    (parked,) = caught.value.records
    bad = payload_of(parse_event(parked.value), prediction_pb2.PredictionBatch)
    assert (5, ["b\0"], np.array([9], "<i8").tobytes()) == (
        parked.offset,
        bad.prediction_ids,
        bad.event_times,
    )
    rest = Batch(tuple(records), 6).without(caught.value)
    asyncio.run(handler.handle(None, rest.records))  # type: ignore[arg-type]
    assert [["a", "b"], ["a"]] == [columns.ids for columns in counted]
    assert [7] == counted[1].event_times.tolist()
    assert ["JFK"] == counted[1].features["origin"][0].tolist()


@pytest.mark.parametrize("field", ["prediction_ids", "segments", "subjects"])
@pytest.mark.parametrize("records", [1, 2 * FEWEST])
def test_no_text_with_a_nul_character_is_stored(field: str, records: int) -> None:
    """Packs join texts by NUL (`store.postgres.packs`); also of records that are decoded together."""
    batches = []
    for k in range(records):
        batch = good_batch()
        del batch.prediction_ids[:]
        batch.prediction_ids.extend([f"a{k:02}", f"b{k:02}"])
        batch.segments.extend(["de", "fr"])
        batch.subjects.extend(["s1", "s2"])
        batches.append(batch)
    getattr(batches[-1], field)[1] = getattr(batches[-1], field)[1][:-1] + "\0"
    counted: list[Any] = []
    handler = EventHandler(lambda conn: Counting(counted), BOUND)  # type: ignore[arg-type, return-value]
    sent = [event_record(k, batch) for k, batch in enumerate(batches)]
    with pytest.raises(PoisonError, match="NUL") as caught:
        asyncio.run(handler.handle(None, sent))  # type: ignore[arg-type]
    assert [records - 1] == [r.offset for r in caught.value.records]
    rest = Batch(tuple(sent), 6).without(caught.value)
    asyncio.run(handler.handle(None, rest.records))  # type: ignore[arg-type]
    stored = [text for c in counted for text in (*c.ids, *c.segments, *c.subjects)]
    assert 3 * (2 * records - 1) == len(stored)
    assert not any("\0" in text for text in stored)


def test_only_outcomes_with_a_nul_character_are_poison() -> None:
    batch = prediction_pb2.OutcomeBatch(
        model="projects/p/models/late",
        prediction_ids=["a", "b", "c"],
        event_times=np.array([7, 8, 9], "<i8").tobytes(),
        name="label",
        values=np.array([1.0, 0.0, 1.0]).tobytes(),
        outcome_ids=["1", "2\0", "3"],
    )
    handler = EventHandler(lambda conn: Counting([]), BOUND)  # type: ignore[arg-type, return-value]
    with pytest.raises(PoisonError) as caught:
        asyncio.run(handler.handle(None, [event_record(1, batch)]))  # type: ignore[arg-type]
    (rest,) = caught.value.remaining
    assert rest.event is not None
    kept = decode.outcome_columns(payload_of(rest.event, prediction_pb2.OutcomeBatch))
    assert (["a", "c"], ["1", "3"], [1.0, 1.0]) == (
        kept.prediction_ids,
        kept.outcome_ids,
        kept.values.tolist(),
    )


@pytest.mark.parametrize("table", ["entities", "request_fields", "applied_offsets"])
@pytest.mark.parametrize(
    "column",
    [
        from_texts("a", ["x"]),
        from_lists("a", [[1], [2], [3]], DATA_TYPE_INT64_LIST),
        Column(name="a", data_type=DATA_TYPE_INT64_LIST, offsets=bytes(12), packed=bytes(8)),
        Column(name="a", data_type=DATA_TYPE_INT64_LIST, offsets=bytes(12), validity=bytes(2)),
        Column(name="a", data_type=DATA_TYPE_INT64, packed=bytes(15)),
        Column(name="", data_type=DATA_TYPE_INT64, packed=bytes(16)),
        Column(name="a"),
    ],
)
def test_a_batch_that_cannot_be_archived_is_rejected(table: str, column: Column) -> None:
    batch = good_batch()
    getattr(batch, table).columns.append(column)
    with pytest.raises(InvalidArgument):
        decode.prediction_columns(batch, b"")


@pytest.mark.parametrize(
    "damage", [{"values": b"\0" * 7}, {"name": ""}, {"values": b"\0\0\0\0\0\0\xf8\x7f"}, {"model": "x"}]
)
def test_a_malformed_outcome_batch_is_rejected(damage: dict[str, object]) -> None:
    fields: dict[str, object] = {
        "model": "projects/p/models/late",
        "prediction_ids": ["a"],
        "event_times": bytes(8),
        "name": "label",
        "values": bytes(8),
        "outcome_ids": ["o"],
    }
    assert decode.outcome_columns(prediction_pb2.OutcomeBatch(**fields)).values.tolist() == [0.0]
    with pytest.raises(InvalidArgument):
        decode.outcome_columns(prediction_pb2.OutcomeBatch(**{**fields, **damage}))


@pytest.mark.parametrize("wrong", [0, int(NOON.timestamp() * 1e6) + 300_000_001, 253_402_300_799_000_000])
def test_only_rows_with_a_time_out_of_range_are_poison(wrong: int) -> None:
    honest = int(NOON.timestamp() * 1e6) + 300_000_000
    batch = prediction_pb2.OutcomeBatch(
        model="projects/p/models/late",
        prediction_ids=["a", "b", "c"],
        event_times=np.array([1, wrong, honest], "<i8").tobytes(),
        name="label",
        values=np.array([1.0, 0.0, 1.0]).tobytes(),
        outcome_ids=["1", "2", "3"],
    )
    handler = EventHandler(lambda conn: Counting([]), BOUND)  # type: ignore[arg-type, return-value]
    with pytest.raises(PoisonError, match="max_clock_skew") as caught:
        asyncio.run(handler.handle(None, [event_record(1, batch)]))  # type: ignore[arg-type]
    (rest,) = caught.value.remaining
    assert rest.event is not None
    kept = decode.outcome_columns(payload_of(rest.event, prediction_pb2.OutcomeBatch))
    assert kept.prediction_ids == ["a", "c"]
    (parked,) = caught.value.records
    assert parked.event is not None
    assert payload_of(parked.event, prediction_pb2.OutcomeBatch).prediction_ids == ["b"]


@pytest.mark.parametrize("wrong", [2.0, -1.0, 0.5, 1e-9])
def test_only_labels_that_are_not_binary_are_poison(wrong: float) -> None:
    batch = prediction_pb2.OutcomeBatch(
        model="projects/p/models/late",
        prediction_ids=["a", "b", "c"],
        event_times=np.array([1, 1, 1], "<i8").tobytes(),
        name="label",
        values=np.array([1.0, wrong, 0.0]).tobytes(),
        outcome_ids=["1", "2", "3"],
    )
    counted: list[Any] = []
    handler = EventHandler(lambda conn: Counting(counted), BOUND)  # type: ignore[arg-type, return-value]
    with pytest.raises(PoisonError, match="does not fit the output of its model") as caught:
        asyncio.run(handler.handle(None, [event_record(1, batch)]))  # type: ignore[arg-type]
    (parked,) = caught.value.records
    assert parked.event is not None
    assert payload_of(parked.event, prediction_pb2.OutcomeBatch).prediction_ids == ["b"]
    asyncio.run(handler.handle(None, caught.value.remaining))  # type: ignore[arg-type]
    batch.name = "revenue"
    asyncio.run(handler.handle(None, [event_record(2, batch)]))  # type: ignore[arg-type]
    assert [[1.0, 0.0], [1.0, wrong, 0.0]] == [columns.values.tolist() for columns in counted]
