"""Verifies the audit of one model against its row and its evidence."""

from __future__ import annotations

from typing import Protocol

from flywheel_registry.audit.chain import AuditEntry, AuditHead
from flywheel_registry.audit.ports import AuditRecords
from flywheel_registry.audit.verification import audit_faults
from flywheel_registry.evidence.ports import EvidenceRecords

BATCH = 1000


class VerifiedRecords(AuditRecords, EvidenceRecords, Protocol):
    """What a verification reads."""


async def verify_model_audit(records: VerifiedRecords, model: str, head: AuditHead) -> list[str]:
    """Return one sentence for each fault of a model's audit; nothing when it is intact."""
    entries: list[AuditEntry] = []
    before = head.sequence + 1
    while batch := await records.audit(model, before, BATCH):
        entries += batch
        before = batch[-1].sequence
    entries.reverse()
    count, hashes = await records.last_evidence(model), {}
    for number in range(1, count + 1):
        found = await records.evidence(model, number)
        if found is not None:
            hashes[number] = found.hash
    return list(audit_faults(model, entries, head, {}, hashes, count))
