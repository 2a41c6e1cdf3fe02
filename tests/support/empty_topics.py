"""Topics without records, as the first test of a session finds them."""

from __future__ import annotations

from collections.abc import Sequence

from aiokafka.admin import AIOKafkaAdminClient

from flywheel_common.kafka.client import ensure_topics
from flywheel_common.kafka.topics import TopicSpec
from tests.support.eventually import eventually


async def empty_topics(bootstrap: str, specs: Sequence[TopicSpec]) -> None:
    """Delete and create topics: a consumer of a new database would read the records of all earlier tests."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        old = {spec.name for spec in specs}.intersection(await admin.list_topics())
        if old:
            await admin.delete_topics(sorted(old))

        async def deleted() -> bool:
            return not old.intersection(await admin.list_topics())

        # A broker lists a deleted topic until it has read of the deletion; it would not be created again.
        await eventually(deleted, within=30)
    finally:
        await admin.close()
    await ensure_topics(bootstrap, specs)
