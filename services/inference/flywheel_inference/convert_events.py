"""Domain rows → the events of `prediction.logged` and `outcome.recorded`, one record per partition."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from flywheel_common import columns
from flywheel_common.kafka import topics
from flywheel_common.kafka.envelope import build_event
from flywheel_common.kafka.topics import MAX_RECORD_BYTES
from flywheel_common.telemetry.logs import get_logger
from flywheel_inference.outcomes import OutcomeRow
from flywheel_inference.prediction_log import LogRecord, LogRows
from flywheel_inference.release import FieldSpec
from flywheel_inference.tensor import FeatureColumn, join_columns
from flywheel_protos.events.v1 import prediction_pb2 as pb
from flywheel_protos.types.v1 import column_pb2, value_pb2

log = get_logger(__name__)

SOURCE = "flywheel-inference"
OVERHEAD_BYTES = 1024
"""Key, headers and framing of a Kafka record."""
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def prediction_records(
    rows: Sequence[LogRows], partitions: int, max_bytes: int = MAX_RECORD_BYTES - OVERHEAD_BYTES
) -> list[LogRecord]:
    """Records of one partition each for rows of one group (`LogRows.group`), none larger than `max_bytes`: one per partition
    where that suffices. A row that is larger alone is left out."""
    items = [item for part in rows for item in part.items]
    by_partition: dict[int, list[int]] = {}
    for row, item in enumerate(items):
        by_partition.setdefault(topics.partition_for(item.prediction_id, partitions), []).append(row)
    whole = _Joined(rows)

    def fitting(partition: int, places: list[int]) -> list[LogRecord]:
        newest = max(items[place].event_micros for place in places)
        value = _event(whole.batch(np.array(places)), partition, newest)
        if len(value) <= max_bytes:
            return [LogRecord(partition, value, len(places))]
        if len(places) == 1:
            log.error("prediction too large to be logged", release=rows[0].spec.name, bytes=len(value))
            return []
        middle = len(places) // 2
        return [*fitting(partition, places[:middle]), *fitting(partition, places[middle:])]

    return [record for partition, places in by_partition.items() for record in fitting(partition, places)]


def outcome_records(model: str, outcomes: Sequence[OutcomeRow], partitions: int) -> list[tuple[int, bytes]]:
    """(partition, serialized Event): one batch per partition and outcome name."""
    groups: dict[tuple[int, str], list[OutcomeRow]] = {}
    for outcome in outcomes:
        groups.setdefault((topics.partition_for(outcome.prediction_id, partitions), outcome.name), []).append(
            outcome
        )
    records = []
    for (partition, name), rows in groups.items():
        batch = pb.OutcomeBatch(
            model=model,
            prediction_ids=[row.prediction_id for row in rows],
            event_times=np.array([row.event_micros for row in rows], "<i8").tobytes(),
            name=name,
            values=np.array([row.value for row in rows], "<f8").tobytes(),
            outcome_ids=[row.outcome_id for row in rows],
        )
        records.append((partition, _event(batch, partition, max(row.event_micros for row in rows))))
    return records


def _event(batch: pb.PredictionBatch | pb.OutcomeBatch, partition: int, event_micros: int) -> bytes:
    when = EPOCH + timedelta(microseconds=event_micros)
    return build_event(batch, source=SOURCE, key=str(partition), event_time=when).SerializeToString()


class _Joined:
    """Several LogRows as one set of columns."""

    def __init__(self, rows: Sequence[LogRows]) -> None:
        self._first = rows[0]
        self._items = [item for part in rows for item in part.items]
        self._scores = np.concatenate([part.scores for part in rows])
        self._decisions = np.concatenate([part.decisions for part in rows])
        self._sources = np.concatenate([part.sources for part in rows])
        self._latencies = np.concatenate([part.latencies_ms for part in rows])
        self._reasons: list[str] = []
        if any(part.reasons for part in rows):
            self._reasons = [reason for part in rows for reason in part.reasons or [""] * len(part.items)]
        self._features: tuple[FeatureColumn, ...] | None = None
        if self._first.features is not None:
            self._features = join_columns([part.features for part in rows if part.features is not None])
        self._applied = join_columns([part.applied for part in rows])

    def batch(self, index: Any) -> pb.PredictionBatch:
        first, items = self._first, [self._items[i] for i in index.tolist()]
        segments = [item.segment for item in items]
        return pb.PredictionBatch(
            model=first.spec.model,
            model_version=first.spec.model_version,
            release=first.spec.name,
            rollout=first.rollout,
            role=first.role,  # type: ignore[arg-type]
            prediction_ids=[item.prediction_id for item in items],
            event_times=np.array([item.event_micros for item in items], "<i8").tobytes(),
            features=self._served(index),
            scores=self._scores[index].astype("<f8").tobytes(),
            decisions=self._decisions[index].astype(np.uint8).tobytes(),
            sources=self._sources[index].astype(np.uint8).tobytes(),
            latencies_ms=self._latencies[index].astype("<f4").tobytes(),
            subjects=[item.subject for item in items],
            segments=segments if first.spec.segment_keys else [],
            error_reasons=[self._reasons[i] for i in index.tolist()] if self._reasons else [],
            entities=table([item.keys for item in items], first.contract.join_keys),
            request_fields=table([item.fields for item in items], first.contract.request_fields),
            feature_set=first.feature_set,
            applied_offsets=_as_table(self._applied, index) if self._applied else None,
        )

    def _served(self, index: Any) -> column_pb2.Table:
        if self._features is None:
            none = np.zeros(len(index), np.bool_)
            return column_pb2.Table(
                row_count=len(index),
                columns=[
                    _nulls(s.name, TEXT if s.vocabulary else s.data_type, none)
                    for s in self._first.spec.inputs
                ],
            )
        return _as_table(self._features, index)


TEXT = value_pb2.DATA_TYPE_STRING


def _as_table(parts: Sequence[FeatureColumn], index: Any) -> column_pb2.Table:
    return column_pb2.Table(row_count=len(index), columns=[_packed(part.take(index)) for part in parts])


def _packed(part: FeatureColumn) -> column_pb2.Column:
    if part.data_type in columns.ELEMENT_OF:
        rows = [row if ok else None for row, ok in zip(part.values, part.valid.tolist(), strict=True)]
        return columns.from_lists(part.name, rows, part.data_type)
    return columns.from_numpy(part.name, part.values, part.valid, data_type=part.data_type)


def table(rows: Sequence[tuple[Any, ...]], specs: Sequence[FieldSpec]) -> column_pb2.Table:
    """Values by row → typed columns; None is null."""
    return column_pb2.Table(
        row_count=len(rows),
        columns=[column(spec, [row[place] for row in rows]) for place, spec in enumerate(specs)],
    )


def column(spec: FieldSpec, values: list[Any]) -> column_pb2.Column:
    """One typed column of values in the types of `value.coerce`."""
    kind = spec.data_type
    if kind == TEXT:
        return columns.from_texts(spec.name, values)
    if kind == value_pb2.DATA_TYPE_BYTES:
        return columns.from_blobs(spec.name, values)
    if kind in columns.ELEMENT_OF:
        return columns.from_lists(spec.name, values, kind)
    if kind in columns.VECTORS:
        size = next((len(v) for v in values if v is not None), 1)
        valid = np.array([v is not None for v in values], np.bool_)
        filled = np.array([v if v is not None else [0.0] * size for v in values], columns.DTYPES[kind])
        return columns.from_numpy(spec.name, filled, valid, data_type=kind)
    if None in values:
        valid = np.array([v is not None for v in values], np.bool_)
        filled = np.array([v if v is not None else 0 for v in values], columns.DTYPES[kind])
        return columns.from_numpy(spec.name, filled, valid, data_type=kind)
    return columns.from_numpy(spec.name, np.array(values, columns.DTYPES[kind]), data_type=kind)


def _nulls(name: str, kind: int, valid: Any) -> column_pb2.Column:
    if kind == TEXT:
        return columns.from_texts(name, [None] * len(valid))
    return columns.from_numpy(
        name, np.zeros(len(valid), columns.DTYPES.get(kind, np.dtype("<f8"))), valid, data_type=kind
    )
