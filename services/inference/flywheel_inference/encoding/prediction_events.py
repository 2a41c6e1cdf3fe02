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
from flywheel_inference.encoding.typed_columns import TEXT, _nulls, table
from flywheel_inference.models.feature_block import FeatureColumn, join_columns
from flywheel_inference.prediction_log.rows import LogRecord, LogRows
from flywheel_protos.events.v1 import prediction_pb2 as pb
from flywheel_protos.types.v1 import column_pb2

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


def _as_table(parts: Sequence[FeatureColumn], index: Any) -> column_pb2.Table:
    return column_pb2.Table(row_count=len(index), columns=[_packed(part.take(index)) for part in parts])


def _packed(part: FeatureColumn) -> column_pb2.Column:
    if part.data_type in columns.ELEMENT_OF:
        rows = [row if ok else None for row, ok in zip(part.values, part.valid.tolist(), strict=True)]
        return columns.from_lists(part.name, rows, part.data_type)
    return columns.from_numpy(part.name, part.values, part.valid, data_type=part.data_type)
