"""A Kafka producer that waits for acknowledgements."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError
from prometheus_client import Counter

from flywheel_common.errors import FlywheelError
from flywheel_common.kafka.client import close_quietly, stop_producer, unavailable
from flywheel_common.kafka.errors import EventTooLarge
from flywheel_common.kafka.topics import MAX_RECORD_BYTES
from flywheel_common.telemetry.logs import get_logger
from flywheel_protos.events.v1.event_pb2 import Event

log = get_logger(__name__)

Outgoing = tuple[str, bytes, str | None, int | None]
"""(topic, value, key, partition); partition None = by the key's hash."""

sent_total = Counter("flywheel_producer_sent", "Records acknowledged", ["producer"])


class Producer:
    """An idempotent producer with acks=all. Connects on first use and again after a fatal error, so that a
    service starts without Kafka.

    Raises KafkaUnavailable (the record may have arrived) and EventTooLarge.
    """

    def __init__(
        self,
        bootstrap: str,
        *,
        client_id: str,
        linger_ms: int = 0,
        timeout_seconds: float = 10.0,
        compression: str | None = None,
        max_batch_bytes: int = 256 * 1024,
        max_record_bytes: int = MAX_RECORD_BYTES,
    ) -> None:
        self.client_id = client_id
        self._timeout = timeout_seconds
        self._settings: dict[str, Any] = {
            "bootstrap_servers": bootstrap,
            "client_id": client_id,
            "acks": "all",
            "enable_idempotence": True,
            "linger_ms": linger_ms,
            "compression_type": compression,
            "max_batch_size": max_batch_bytes,
            "max_request_size": max_record_bytes,
            "request_timeout_ms": int(timeout_seconds * 1000),
            "retry_backoff_ms": 100,
            "metadata_max_age_ms": 30_000,
        }
        self._inner: AIOKafkaProducer | None = None
        self._lock = asyncio.Lock()

    async def send(
        self,
        topic: str,
        value: bytes | Event,
        *,
        key: str | None = None,
        partition: int | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
    ) -> tuple[int, int]:
        """Returns (partition, offset) when Kafka has acknowledged. The default key of an Event is its own."""
        if isinstance(value, Event):
            key = value.key if key is None else key
            value = value.SerializeToString()
        inner = None
        try:
            async with asyncio.timeout(self._timeout):
                inner = await self._connected()
                future = await inner.send(
                    topic, value, key=_bytes(key), partition=partition, headers=list(headers)
                )
                future.add_done_callback(_ignore_result)  # it may end after the timeout
                metadata = await asyncio.shield(future)
        except MessageSizeTooLargeError:
            raise _too_large(topic, value) from None
        except (KafkaError, OSError, TimeoutError) as error:
            await self._reset(inner, error)
            raise unavailable(error) from error
        sent_total.labels(self.client_id).inc()
        return metadata.partition, metadata.offset

    async def send_in_order(self, records: Sequence[Outgoing]) -> tuple[int, FlywheelError | None]:
        """Sends records; returns how many from the first on were acknowledged without a gap, and the error of
        the next one: KafkaUnavailable or EventTooLarge."""
        futures: list[Any] = []
        failure: BaseException | None = None
        inner = None
        try:
            async with asyncio.timeout(self._timeout):
                inner = await self._connected()
                for topic, value, key, partition in records:
                    try:
                        futures.append(await inner.send(topic, value, key=_bytes(key), partition=partition))
                    except MessageSizeTooLargeError:
                        failure = _too_large(topic, value)
                        break
                if futures:
                    await asyncio.wait(futures)
        except (KafkaError, OSError, TimeoutError) as error:
            failure = error
        done = 0
        for future in futures:
            if not future.done() or future.cancelled() or future.exception() is not None:
                break
            done += 1
        if done < len(futures) and isinstance(failure, FlywheelError):
            failure = None  # an earlier record failed too: its error comes first
        for future in futures[done:]:
            future.add_done_callback(_ignore_result)
            if failure is None and future.done() and not future.cancelled():
                failure = future.exception()
        sent_total.labels(self.client_id).inc(done)
        if done == len(records):
            return done, None
        if isinstance(failure, FlywheelError):
            return done, failure
        failure = failure or TimeoutError()
        await self._reset(inner, failure)
        return done, unavailable(failure)

    async def close(self) -> None:
        """Sends buffered records, bounded by the timeout, and disconnects."""
        inner, self._inner = self._inner, None
        if inner is not None:
            await stop_producer(inner, flush_seconds=self._timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _connected(self) -> AIOKafkaProducer:
        if self._inner is not None:
            return self._inner
        async with self._lock:
            if self._inner is None:
                inner = AIOKafkaProducer(**self._settings)
                try:
                    await inner.start()
                except BaseException:
                    await close_quietly(inner.stop())
                    raise
                self._inner = inner
        return self._inner

    async def _reset(self, failed: AIOKafkaProducer | None, error: BaseException) -> None:
        """Replaces the producer, because a failed idempotent batch leaves a gap in its sequence. If many
        calls fail with the same producer, the first one replaces it."""
        if failed is None or self._inner is not failed:
            return
        log.warning("producer reconnects", producer=self.client_id, error=type(error).__name__)
        self._inner = None
        await stop_producer(failed, flush_seconds=0.0)


def _bytes(key: str | None) -> bytes | None:
    return None if key is None else key.encode()


def _too_large(topic: str, value: bytes) -> EventTooLarge:
    return EventTooLarge(
        f"An event of {len(value)} bytes is too large for {topic}: send it in smaller pieces."
    )


def _ignore_result(future: Any) -> None:
    if not future.cancelled():
        future.exception()
