"""Routing and serving history in PostgreSQL."""

from __future__ import annotations

from dataclasses import astuple
from datetime import datetime

from flywheel_common.postgres.pool import Connection
from flywheel_registry.serving.history import ServingSpan
from flywheel_registry.serving.routing import Routing
from flywheel_registry.store.postgres import rows
from flywheel_registry.store.postgres import statements as sql


class PostgresServing:
    """Part of `PostgresRecords`: routing and serving history. `_conn` is the transaction's connection."""

    _conn: Connection

    async def routing(self, model: str) -> Routing:
        row = await self._conn.fetchrow(sql.SELECT_ROUTING, model)
        return Routing() if row is None else rows.routing(row)

    async def set_routing(self, model: str, routing: Routing) -> None:
        await self._conn.execute(
            sql.UPSERT_ROUTING,
            model,
            routing.generation,
            routing.champion,
            routing.challenger,
            routing.rollout,
            routing.shadow_percent,
            routing.challenger_percent,
            rows.dumps([astuple(variant) for variant in routing.variants]),
        )
        await self._conn.execute(sql.NOTIFY_SERVING, model)

    async def spans(self, model: str) -> list[ServingSpan]:
        return [rows.span(row) for row in await self._conn.fetch(sql.ALL_SPANS, model)]

    async def page_of_spans(self, model: str, before: int, limit: int) -> list[tuple[int, ServingSpan]]:
        found = await self._conn.fetch(sql.LIST_SPANS, model, before, limit)
        return [(row["position"], rows.span(row)) for row in found]

    async def begin_span(self, model: str, span: ServingSpan) -> None:
        await self._conn.execute(sql.CLOSE_SPAN, model, span.since)
        await self._conn.execute(
            sql.OPEN_SPAN, model, span.release, span.version, span.since, span.reason, span.by_rollback
        )

    async def end_span(self, model: str, at: datetime) -> None:
        await self._conn.execute(sql.CLOSE_SPAN, model, at)

    async def span_at(self, model: str, at: datetime) -> ServingSpan | None:
        row = await self._conn.fetchrow(sql.SPAN_AT, model, at)
        return None if row is None else rows.span(row)
