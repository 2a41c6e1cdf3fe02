"""Writes audit entries for the changes of one caller."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

from flywheel_registry.audit.chain import AuditEntry
from flywheel_registry.audit.ports import AuditRecords


class Proof(Protocol):
    """What a change was decided on: evidence, with its resource name and the hash of its fields."""

    @property
    def name(self) -> str: ...

    @property
    def hash(self) -> str: ...


class Journal:
    """The audit of the changes that `actor` makes to one model at time `at`, in one transaction.

    The transaction must hold the model's lock.
    """

    def __init__(self, records: AuditRecords, model: str, at: datetime, actor: str) -> None:
        self._records = records
        self.model = model
        self.at = at
        self.actor = actor

    async def write(
        self,
        action: str,
        subject: str,
        *,
        from_state: str = "",
        to_state: str = "",
        reason: str = "",
        evidence: Proof | None = None,
    ) -> None:
        """Append one entry. `subject` is the resource that changed."""
        await self._records.add_audit(
            AuditEntry(
                model=self.model,
                sequence=0,
                at=self.at,
                actor=self.actor,
                action=action,
                subject=subject,
                from_state=str(from_state),
                to_state=str(to_state),
                reason=reason,
                evidence=evidence.name if evidence else "",
                evidence_hash=evidence.hash if evidence else "",
            )
        )
