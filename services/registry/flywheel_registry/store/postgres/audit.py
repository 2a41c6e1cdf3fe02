"""Evidence, audit entries and outgoing events in PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

from flywheel_common.kafka.outbox import enqueue
from flywheel_protos.events.v1.event_pb2 import Event
from flywheel_registry.audit.chain import AuditEntry, AuditHead, entry_hash, genesis
from flywheel_registry.events.lifecycle import RolloutChanged, StageChanged
from flywheel_registry.evidence.evidence import Evidence
from flywheel_registry.models.approval import Approval
from flywheel_registry.store.postgres import rows
from flywheel_registry.store.postgres import statements as sql
from flywheel_registry.store.postgres import webhook_statements as webhooks
from flywheel_registry.store.postgres.models import PostgresModels
from flywheel_registry.webhooks.payload import payload

ToEvent = Callable[[StageChanged | RolloutChanged, datetime, AuditHead], tuple[str, Event]]
"""Converts a domain event at a wall time, with the head of its model's audit, to (topic, envelope)."""


class PostgresAudit(PostgresModels):
    """Part of `PostgresRecords`: evidence, audit entries and events."""

    _to_event: ToEvent
    _events: list[tuple[StageChanged | RolloutChanged, datetime]]

    async def add_evidence(self, evidence: Evidence) -> Evidence:
        e = replace(evidence, number=await self._next_number(evidence.model, "evidence"))
        await self._conn.execute(
            sql.INSERT_EVIDENCE,
            e.model,
            e.number,
            e.kind,
            e.version,
            rows.dumps(dict(e.values)),
            rows.dumps(list(e.findings)),
            e.passed,
            e.created_at,
            e.producer,
            e.champion,
            e.rollout,
            e.step,
            e.policy,
        )
        return e

    async def evidence(self, model: str, number: int) -> Evidence | None:
        row = await self._conn.fetchrow(sql.SELECT_EVIDENCE, model, number)
        return None if row is None else rows.evidence(row)

    async def newest_evidence_of(self, model: str, version: int, kind: str) -> Evidence | None:
        row = await self._conn.fetchrow(sql.NEWEST_EVIDENCE_OF, model, version, kind)
        return None if row is None else rows.evidence(row)

    async def add_audit(self, entry: AuditEntry) -> AuditEntry:
        head = await self._audit_head(entry.model)
        sequence, previous = head.sequence + 1, head.hash or genesis(entry.model)
        entry = replace(entry, sequence=sequence, hash="")
        entry = replace(entry, hash=entry_hash(previous, entry))
        await self._conn.execute(
            sql.INSERT_AUDIT,
            entry.model,
            entry.sequence,
            entry.at,
            entry.actor,
            entry.action,
            entry.subject,
            entry.from_state,
            entry.to_state,
            entry.reason,
            entry.evidence,
            entry.hash,
            entry.evidence_hash,
        )
        return entry

    async def audit(self, model: str, before: int, limit: int) -> list[AuditEntry]:
        return [rows.audit_entry(row) for row in await self._conn.fetch(sql.LIST_AUDIT, model, before, limit)]

    async def emit(self, event: StageChanged | RolloutChanged, at: datetime) -> None:
        self._events.append((event, at))

    async def send_events(self) -> None:
        """Store the emitted events in the outbox; at the end of the transaction, when the heads are known."""
        events, self._events = self._events, []
        for event, at in events:
            head = await self._audit_head(event.model)
            topic, envelope = self._to_event(event, at, head)
            await enqueue(self._conn, topic, envelope)
            kinds, body = payload(event, at, head)
            await self._conn.execute(webhooks.ADD_DELIVERIES, event.model, kinds, envelope.id, body.encode())

    async def audit_head(self, model: str) -> AuditHead | None:
        row = await self._conn.fetchrow(sql.AUDIT_HEAD, model)
        return None if row is None else AuditHead(row["last_audit"], row["audit_head"])

    async def _audit_head(self, model: str) -> AuditHead:
        return await self.audit_head(model) or AuditHead()

    async def last_evidence(self, model: str) -> int:
        return await self._conn.fetchval(sql.LAST_EVIDENCE, model) or 0

    async def add_approval(self, approval: Approval) -> None:
        a = approval
        await self._conn.execute(sql.INSERT_APPROVAL, a.model, a.version, a.approver, a.reason, a.approved_at)

    async def approvals(self, model: str, version: int) -> list[Approval]:
        return [Approval(**row) for row in await self._conn.fetch(sql.LIST_APPROVALS, model, version)]

    async def registrar(self, model: str, version_name: str) -> str:
        return await self._conn.fetchval(sql.REGISTRAR, model, version_name) or ""
