"""Topics without records, as the first test of a session finds them."""

from __future__ import annotations

from collections.abc import Sequence

from aiokafka.admin import AIOKafkaAdminClient

from flywheel_common.kafka.client import ensure_topics
from flywheel_common.kafka.topics import TopicSpec


async def empty_topics(bootstrap: str, specs: Sequence[TopicSpec]) -> None:
    """Delete and create topics: a consumer of a new database would read the records of all earlier tests."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        existing = set(await admin.list_topics())
        await admin.delete_topics([spec.name for spec in specs if spec.name in existing])
    finally:
        await admin.close()
    await ensure_topics(bootstrap, specs)
