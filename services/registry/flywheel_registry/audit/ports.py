"""The port to stored audit entries."""

from __future__ import annotations

from typing import Protocol

from flywheel_registry.audit.chain import AuditEntry, AuditHead


class AuditRecords(Protocol):
    """The audit entries of all models, in one transaction."""

    async def add_audit(self, entry: AuditEntry) -> AuditEntry:
        """Append an entry with the next sequence number and the chained hash; those of `entry` are ignored.

        The transaction must hold the model's lock.
        """
        ...

    async def audit(self, model: str, before: int, limit: int) -> list[AuditEntry]:
        """Return entries with a sequence number below `before`, newest first."""
        ...

    async def audit_head(self, model: str) -> AuditHead | None:
        """Return the newest entry as the model's row has it, also of a deleted one; None without a row."""
        ...
