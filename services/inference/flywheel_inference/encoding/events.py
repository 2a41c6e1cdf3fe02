"""The event envelope of the gateway's Kafka records."""

from __future__ import annotations

from flywheel_common.kafka.envelope import build_event
from flywheel_common.value import from_micros
from flywheel_protos.events.v1 import prediction_pb2 as pb

SOURCE = "flywheel-inference"


def event_bytes(batch: pb.PredictionBatch | pb.OutcomeBatch, partition: int, event_micros: int) -> bytes:
    """The serialized Event with this payload, keyed by its partition."""
    when = from_micros(event_micros)
    return build_event(batch, source=SOURCE, key=str(partition), event_time=when).SerializeToString()
