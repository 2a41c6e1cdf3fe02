"""The store of the registry in memory, held to the same contract tests as PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime

from flywheel_common.context import current_principal
from flywheel_common.postgres.errors import InvalidRequestId, RequestIdReused
from flywheel_common.postgres.idempotency import MAX_REQUEST_ID
from flywheel_registry.audit.chain import AuditHead
from flywheel_registry.events.lifecycle import RolloutChanged, StageChanged
from flywheel_registry.fakes.records import MemoryRecords
from flywheel_registry.fakes.tables import MemoryTables
from flywheel_registry.rollouts.ports import RolloutRecords


class MemoryStore:
    """`Store[RolloutRecords]` in memory; transactions run one after another.

    The callbacks in `on_routing_change` receive the models whose routing a commit wrote.
    """

    def __init__(self) -> None:
        self._tables = MemoryTables()
        self._lock = asyncio.Lock()
        self.on_routing_change: list[Callable[[set[str]], None]] = []

    @property
    def events(self) -> list[tuple[StageChanged | RolloutChanged, datetime]]:
        """The emitted events, in order."""
        return list(self._tables.events.values())

    @property
    def heads(self) -> list[AuditHead]:
        """The head of the model's audit that each event carries."""
        return [head for _, head in sorted(self._tables.heads.items())]

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[MemoryRecords]:
        async with self._lock:
            before, changed = self._tables, self._tables.copy()
            records = MemoryRecords(lambda: changed)
            yield records
            records.send_events()
            self._tables = changed
        if routed := {m for m, routing in changed.routing.items() if routing is not before.routing.get(m)}:
            for callback in self.on_routing_change:
                callback(routed)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[MemoryRecords]:
        yield MemoryRecords(lambda: self._tables)

    async def once(
        self,
        method: str,
        request_id: str,
        body: bytes,
        effect: Callable[[RolloutRecords], Awaitable[bytes]],
    ) -> bytes:
        if len(request_id) > MAX_REQUEST_ID:
            raise InvalidRequestId(f"request_id is longer than {MAX_REQUEST_ID} characters: shorten it.")
        async with self.transaction() as records:
            if not request_id:
                return await effect(records)
            answers = records.answers
            key = current_principal().subject, method, request_id
            if key in answers:
                first_body, answer = answers[key]
                if first_body != body:
                    raise RequestIdReused(
                        f"request_id {request_id!r} was used for another {method} request: use a new id.",
                        request_id=request_id,
                    )
                return answer
            answer = await effect(records)
            answers[key] = body, answer
            return answer

    def generations(self) -> dict[str, int]:
        """Return the generation of each model's routing."""
        return {model: routing.generation for model, routing in self._tables.routing.items()}
