"""The heads of audit chains that went out with events, read back from Kafka."""

from __future__ import annotations

import asyncio
from collections import defaultdict

from aiokafka import AIOKafkaConsumer

from flywheel_common.kafka import topics
from flywheel_common.kafka.client import close_quietly, kafka_errors, partitions_of
from flywheel_common.kafka.envelope import payload_of
from flywheel_protos.events.v1.event_pb2 import Event
from flywheel_protos.events.v1.lifecycle_pb2 import ModelStageChanged, RolloutChanged

TYPES = {topics.MODEL_STAGE_CHANGED: ModelStageChanged, topics.ROLLOUT_CHANGED: RolloutChanged}
READ_SECONDS = 600.0
"""How long reading both topics may take."""


async def sent_heads(bootstrap: str, registry_id: str) -> dict[str, dict[int, str]]:
    """Return model → sequence number → hash, of all retained events of one registry.

    Other registries on the same Kafka have other identities. Raises KafkaUnavailable.
    """
    found: dict[str, dict[int, str]] = defaultdict(dict)
    with kafka_errors():
        async with asyncio.timeout(READ_SECONDS):
            consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, client_id="flywheel-verify-audit")
            await consumer.start()
            try:
                await _read(consumer, registry_id, found)
            finally:
                await close_quietly(consumer.stop())
    return dict(found)


async def _read(consumer: AIOKafkaConsumer, registry_id: str, found: dict[str, dict[int, str]]) -> None:
    """Read the topics from the beginning to the ends that they have now."""
    partitions = await partitions_of(consumer, TYPES)
    if not partitions:
        return
    consumer.assign(partitions)
    await consumer.seek_to_beginning(*partitions)
    ends = await consumer.end_offsets(partitions)
    left = {tp for tp in partitions if await consumer.position(tp) < ends[tp]}
    while left:
        batches = await consumer.getmany(timeout_ms=1000)
        for partition, records in batches.items():
            for record in records:
                _note(record.topic, record.value, registry_id, found)
            if await consumer.position(partition) >= ends[partition]:
                left.discard(partition)


def _note(topic: str, value: bytes, registry_id: str, found: dict[str, dict[int, str]]) -> None:
    event = Event.FromString(value)
    payload: ModelStageChanged | RolloutChanged = payload_of(event, TYPES[topic])
    if payload.audit_sequence and payload.registry_id == registry_id:
        found[event.key][payload.audit_sequence] = payload.audit_hash
