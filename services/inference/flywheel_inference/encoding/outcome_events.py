"""Encodes outcomes as records of the topic `outcome.recorded`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flywheel_common.kafka import topics
from flywheel_inference.encoding.events import event_bytes
from flywheel_inference.outcomes.row import OutcomeRow
from flywheel_protos.events.v1 import prediction_pb2 as pb


def outcome_records(model: str, outcomes: Sequence[OutcomeRow], partitions: int) -> list[tuple[int, bytes]]:
    """(partition, serialized Event): one batch per partition and outcome name."""
    groups: dict[tuple[int, str], list[OutcomeRow]] = {}
    for outcome in outcomes:
        partition = topics.partition_for(outcome.prediction_id, partitions)
        groups.setdefault((partition, outcome.name), []).append(outcome)
    records = []
    for (partition, name), rows in groups.items():
        batch = pb.OutcomeBatch(
            model=model,
            prediction_ids=[row.prediction_id for row in rows],
            event_times=np.array([row.event_micros for row in rows], "<i8").tobytes(),
            name=name,
            values=np.array([row.value for row in rows], "<f8").tobytes(),
            outcome_ids=[row.outcome_id for row in rows],
            class_names=[row.class_name for row in rows] if any(row.class_name for row in rows) else [],
        )
        records.append((partition, event_bytes(batch, partition, max(row.event_micros for row in rows))))
    return records
