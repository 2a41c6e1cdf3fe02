"""Kafka topics: names, partitions, retention.

`prediction.logged` and `outcome.recorded` have the same number of partitions and use the same hash of the
prediction id, so that the same consumer gets an outcome and its prediction.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass

DEFAULT_PARTITIONS = 4

PREDICTION_LOGGED = "prediction.logged"
OUTCOME_RECORDED = "outcome.recorded"
DRIFT_DETECTED = "drift.detected"
MODEL_STAGE_CHANGED = "model.stage_changed"
ROLLOUT_CHANGED = "rollout.changed"
TRAINING_COMPLETED = "training.completed"

_SOURCE_PREFIX = "feature.source."
_DEAD_LETTER_PREFIX = "dead-letter."
_DAY_MILLISECONDS = 86_400_000

MAX_RECORD_BYTES = 8 * 1024 * 1024
"""Largest record that producers send and topics take."""


def feature_source(name: str) -> str:
    """The topic of a stream source."""
    return _SOURCE_PREFIX + name


def dead_letter(group: str) -> str:
    """The topic of the poison records of a consumer group."""
    return _DEAD_LETTER_PREFIX + group


@dataclass(frozen=True)
class TopicSpec:
    """A topic to create. `retention_days` is wall time."""

    name: str
    partitions: int = DEFAULT_PARTITIONS
    replication: int = 1
    retention_days: float = 7.0

    @property
    def configs(self) -> dict[str, str]:
        return {
            "retention.ms": str(int(self.retention_days * _DAY_MILLISECONDS)),
            "max.message.bytes": str(MAX_RECORD_BYTES + 64 * 1024),
        }


STANDARD: tuple[TopicSpec, ...] = tuple(
    TopicSpec(name)
    for name in (
        PREDICTION_LOGGED,
        OUTCOME_RECORDED,
        DRIFT_DETECTED,
        MODEL_STAGE_CHANGED,
        ROLLOUT_CHANGED,
        TRAINING_COMPLETED,
    )
)
"""The topics with fixed names."""


def partition_for(key: str, partitions: int = DEFAULT_PARTITIONS) -> int:
    """The partition of a prediction id: CRC-32 of its UTF-8 bytes modulo the partition count."""
    return zlib.crc32(key.encode()) % partitions


def specs(names: Iterable[str], partitions: int = DEFAULT_PARTITIONS) -> list[TopicSpec]:
    """Specs with the same partition count for several names."""
    return [TopicSpec(name, partitions) for name in names]
