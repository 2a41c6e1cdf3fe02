"""Sessions with Kafka that start again after outages."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

from aiokafka.errors import KafkaError

from flywheel_common.errors import FlywheelError
from flywheel_common.kafka.errors import TooMuchPoison
from flywheel_common.telemetry.logs import get_logger

log = get_logger(__name__)


async def reconnecting(group: str, session: Callable[[], Awaitable[None]]) -> None:
    """Never returns; calls `session()` again, with backoff, after outages of Kafka and PostgreSQL.

    Raises TooMuchPoison and whatever else is not an outage.
    """
    delay = 0.2
    while True:
        started = asyncio.get_running_loop().time()
        try:
            await session()
        except TooMuchPoison:
            raise
        except (KafkaError, OSError, TimeoutError) as error:
            log.warning("consumer reconnects", group=group, error=type(error).__name__)
        except FlywheelError as error:
            if not error.retryable:
                raise
            log.warning("consumer reconnects", group=group, error=error.reason)
        delay = 0.2 if asyncio.get_running_loop().time() - started > 30 else min(delay * 2, 5.0)
        await asyncio.sleep(delay * random.uniform(0.5, 1.0))
