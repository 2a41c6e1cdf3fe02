"""Gateways' heartbeats: an unlogged table, so that every replica sees them, and a wake-up in memory for this one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flywheel_common.postgres.pool import Pool, connection
from flywheel_registry.resources import Gateway, ObservedModel
from flywheel_registry.store import rows
from flywheel_registry.store import statements as sql


class PostgresGateways:
    """`ports.Gateways`. Rows of a crashed database are gone (unlogged) and come back with the next heartbeat."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._wake: set[Callable[[], None]] = set()

    async def heartbeat(self, gateway: str, observed: Sequence[ObservedModel]) -> None:
        async with connection(self._pool) as conn:
            await conn.execute(sql.HEARTBEAT, gateway, rows.observed_to_json(list(observed)))
        for wake in tuple(self._wake):
            wake()

    async def watching(self, gateway: str, project: str) -> None:
        async with connection(self._pool) as conn:
            await conn.execute(sql.NOTE_WATCH, gateway, project)

    async def seen(self, within_seconds: float, after: str = "", limit: int = 1000) -> list[Gateway]:
        async with connection(self._pool) as conn:
            return [
                rows.gateway(row) for row in await conn.fetch(sql.LIST_GATEWAYS, within_seconds, after, limit)
            ]

    async def forget_old(self) -> None:
        """Drops gateways that have been silent for a day."""
        async with connection(self._pool) as conn:
            await conn.execute(sql.FORGET_GATEWAYS)

    def on_heartbeat(self, wake: Callable[[], None]) -> Callable[[], None]:
        self._wake.add(wake)
        return lambda: self._wake.discard(wake)
