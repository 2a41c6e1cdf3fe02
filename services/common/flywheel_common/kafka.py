"""What every use of Kafka shares: error mapping and topic creation."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, for_code

from flywheel_common.errors import FailedPrecondition, Unavailable
from flywheel_common.logs import get_logger
from flywheel_common.topics import TopicSpec

log = get_logger(__name__)
_EXISTS = 36


@contextmanager
def kafka_errors() -> Iterator[None]:
    """Turns aiokafka's errors into Unavailable KAFKA_UNAVAILABLE (a timed-out send may have arrived)."""
    try:
        yield
    except (KafkaError, OSError, TimeoutError) as error:
        raise unavailable(error) from error


def unavailable(error: BaseException) -> Unavailable:
    """The domain error for a broker that does not answer."""
    return Unavailable(
        "Kafka does not answer now: try again.", reason="KAFKA_UNAVAILABLE", cause=type(error).__name__
    )


async def create_topics(bootstrap: str, specs: Sequence[TopicSpec], *, timeout_seconds: float = 30.0) -> None:
    """See `topics.ensure_topics`."""
    loop = asyncio.get_running_loop()
    give_up = loop.time() + timeout_seconds
    while True:
        try:
            await _create(bootstrap, specs)
            return
        except (KafkaError, OSError, TimeoutError) as error:
            if loop.time() > give_up:
                raise Unavailable(
                    f"Kafka at {bootstrap} did not answer within {timeout_seconds:g} s: start it or correct kafka_bootstrap.",
                    reason="KAFKA_UNAVAILABLE",
                ) from error
            log.warning("waiting for kafka", bootstrap=bootstrap, error=type(error).__name__)
            await asyncio.sleep(0.5)


async def _create(bootstrap: str, specs: Sequence[TopicSpec]) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap, request_timeout_ms=10_000)
    try:
        await admin.start()
        existing = set(await admin.list_topics())
        missing = [spec for spec in specs if spec.name not in existing]
        if missing:
            answer = await admin.create_topics(
                [NewTopic(s.name, s.partitions, s.replication, topic_configs=s.configs) for s in missing]
            )
            for name, code, *_ in answer.topic_errors:
                if code not in (0, _EXISTS):
                    raise for_code(code)(f"topic {name}")
        wanted = {spec.name: spec.partitions for spec in specs if spec.name in existing}
        for topic in await admin.describe_topics(sorted(wanted)) if wanted else ():
            count = len(topic["partitions"])
            if 0 < count < wanted[topic["topic"]]:
                raise FailedPrecondition(
                    f"Topic {topic['topic']} has {count} partitions where {wanted[topic['topic']]} are needed: "
                    "recreate it, or set kafka_partitions to what it has.",
                    reason="TOO_FEW_PARTITIONS",
                )
    finally:
        with suppress(Exception):
            await admin.close()
