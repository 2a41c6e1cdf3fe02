"""Gateway reports in an unlogged table, shared by all replicas, with callbacks in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flywheel_common.postgres.pool import Pool, connection
from flywheel_registry.serving.gateways import Gateway, ObservedModel
from flywheel_registry.store.postgres import rows
from flywheel_registry.store.postgres import statements as sql


class PostgresGateways:
    """`Gateways` on PostgreSQL. A crash of the database loses the heartbeats, but no gateway's project."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._callbacks: set[Callable[[], None]] = set()

    async def heartbeat(self, gateway: str, observed: Sequence[ObservedModel]) -> None:
        async with connection(self._pool) as conn:
            await conn.execute(sql.HEARTBEAT, gateway, rows.observed_to_json(observed))
        for callback in tuple(self._callbacks):
            callback()

    async def set_project(self, gateway: str, project: str) -> None:
        async with connection(self._pool) as conn:
            await conn.execute(sql.SET_GATEWAY_PROJECT, gateway, project)

    async def remove(self, gateway: str) -> None:
        async with connection(self._pool) as conn:
            await conn.execute(sql.REMOVE_GATEWAY, gateway)

    async def recent(self, within_seconds: float, after: str = "", limit: int = 1000) -> list[Gateway]:
        async with connection(self._pool) as conn:
            found = await conn.fetch(sql.LIST_GATEWAYS, within_seconds, after, limit)
        return [rows.gateway(row) for row in found]

    async def delete_old(self) -> None:
        """Delete gateways without a heartbeat for a day."""
        async with connection(self._pool) as conn:
            await conn.execute(sql.DELETE_OLD_GATEWAYS)

    def on_heartbeat(self, callback: Callable[[], None]) -> Callable[[], None]:
        self._callbacks.add(callback)
        return lambda: self._callbacks.discard(callback)
