"""Ports of replays for a monitor in memory, which has nothing to replay."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from flywheel_common.kafka.errors import KafkaUnavailable
from flywheel_common.postgres.errors import PostgresUnavailable
from flywheel_monitor.replay.ports import LogRange, Positions, Scratch


class NoEventLog:
    """`EventLog` without a broker."""

    @asynccontextmanager
    async def range(self, since_us: int, until: Positions) -> AsyncIterator[LogRange]:
        raise KafkaUnavailable("There is no broker.")
        yield  # a generator


class NoScratchStates:
    """`ScratchStates` without a database."""

    @asynccontextmanager
    async def open(self, model: str, start_us: int, end_us: int) -> AsyncIterator[Scratch]:
        raise PostgresUnavailable("There is no database.")
        yield  # a generator
