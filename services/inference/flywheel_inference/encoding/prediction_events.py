"""Encodes prediction log rows as records of the topic `prediction.logged`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flywheel_common.kafka import topics
from flywheel_common.kafka.topics import MAX_RECORD_BYTES
from flywheel_common.scoring.feature_block import FeatureColumn, concatenate_columns
from flywheel_common.telemetry.logs import get_logger
from flywheel_inference.encoding.events import event_bytes
from flywheel_inference.encoding.typed_columns import feature_table, null_inputs, table
from flywheel_inference.prediction_log.rows import LogRecord, LogRows
from flywheel_protos.events.v1 import prediction_pb2 as pb
from flywheel_protos.types.v1 import column_pb2

log = get_logger(__name__)

OVERHEAD_BYTES = 1024
"""Space for key, headers and framing of a Kafka record."""


def prediction_records(
    rows: Sequence[LogRows], partitions: int, max_bytes: int = MAX_RECORD_BYTES - OVERHEAD_BYTES
) -> list[LogRecord]:
    """Records for rows of one group (`LogRows.group`), none larger than `max_bytes`. A partition gets one
    record, or several when one would be too large. A row that is too large alone is left out."""
    requests = [request for part in rows for request in part.requests]
    by_partition: dict[int, list[int]] = {}
    for row, request in enumerate(requests):
        by_partition.setdefault(topics.partition_for(request.prediction_id, partitions), []).append(row)
    joined = _JoinedRows(rows)

    def records_of(partition: int, places: list[int]) -> list[LogRecord]:
        newest = max(requests[place].event_micros for place in places)
        value = event_bytes(joined.batch(np.array(places)), partition, newest)
        if len(value) <= max_bytes:
            return [LogRecord(partition, value, len(places))]
        if len(places) == 1:
            log.error(
                "prediction too large for the log: dropped", release=rows[0].spec.name, bytes=len(value)
            )
            return []
        middle = len(places) // 2
        return [*records_of(partition, places[:middle]), *records_of(partition, places[middle:])]

    return [record for partition, places in by_partition.items() for record in records_of(partition, places)]


class _JoinedRows:
    """Several LogRows of one group as one set of columns."""

    def __init__(self, rows: Sequence[LogRows]) -> None:
        self._first = rows[0]
        self._requests = [request for part in rows for request in part.requests]
        self._values = np.concatenate([part.values for part in rows])
        self._decisions = np.concatenate([part.decisions for part in rows])
        self._sources = np.concatenate([part.sources for part in rows])
        self._latencies = np.concatenate([part.latencies_ms for part in rows])
        # Rows of one group have one release, so all have costs or none has.
        costs = [part.costs for part in rows if part.costs is not None]
        self._costs = np.concatenate(costs) if costs else None
        sizes = [len(part.requests) for part in rows]
        self._reasons = _texts([part.reasons for part in rows], sizes)
        self._not_yet_valid = _texts([part.not_yet_valid for part in rows], sizes)
        self._features: tuple[FeatureColumn, ...] | None = None
        if self._first.features is not None:
            self._features = concatenate_columns(
                [part.features for part in rows if part.features is not None]
            )
        self._applied = concatenate_columns([part.applied for part in rows])

    def batch(self, index: Any) -> pb.PredictionBatch:
        """The rows at these indices."""
        first, requests = self._first, [self._requests[i] for i in index.tolist()]
        output = first.spec.signature.output
        return pb.PredictionBatch(
            model=first.spec.model,
            model_version=first.spec.model_version,
            release=first.spec.name,
            rollout=first.step.rollout,
            generation=first.step.generation,
            role=first.role,  # type: ignore[arg-type]
            prediction_ids=[request.prediction_id for request in requests],
            event_times=np.array([request.event_micros for request in requests], "<i8").tobytes(),
            features=self._served(index),
            scores=self._values[index].astype("<f8").tobytes(),
            decisions=self._decisions[index].astype(np.uint8).tobytes(),
            sources=self._sources[index].astype(np.uint8).tobytes(),
            latencies_ms=self._latencies[index].astype("<f4").tobytes(),
            costs=self._costs[index].astype("<f4").tobytes() if self._costs is not None else b"",
            subjects=[request.subject for request in requests],
            segments=[request.segment for request in requests] if first.spec.segment_keys else [],
            error_reasons=[self._reasons[i] for i in index.tolist()] if self._reasons else [],
            not_yet_valid=[self._not_yet_valid[i] for i in index.tolist()] if self._not_yet_valid else [],
            entities=table([request.keys for request in requests], first.contract.join_keys),
            request_fields=table([request.fields for request in requests], first.contract.request_fields),
            feature_set=first.feature_set,
            applied_offsets=feature_table(self._applied, index) if self._applied else None,
            output_kind=int(output.kind),  # type: ignore[arg-type]
            score_width=output.width,
            class_names=output.class_names,
        )

    def _served(self, index: Any) -> column_pb2.Table:
        if self._features is None:
            return null_inputs(self._first.spec.signature.inputs, len(index))
        return feature_table(self._features, index)


def _texts(parts: Sequence[Sequence[str]], sizes: Sequence[int]) -> list[str]:
    """The texts of all rows, empty when no part has any; a part without texts has an empty one per row."""
    if not any(parts):
        return []
    return [text for part, size in zip(parts, sizes, strict=True) for text in part or [""] * size]
