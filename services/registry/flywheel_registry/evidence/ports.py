"""The port to stored evidence."""

from __future__ import annotations

from typing import Protocol

from flywheel_registry.evidence.evidence import Evidence


class EvidenceRecords(Protocol):
    """The evidence of all models, in one transaction. Readers return None for an absent row."""

    async def add_evidence(self, evidence: Evidence) -> Evidence:
        """Add evidence with the next number of its model; it can never be changed."""
        ...

    async def evidence(self, model: str, number: int) -> Evidence | None: ...

    async def newest_evidence_of(self, model: str, version: int, kind: str) -> Evidence | None: ...

    async def last_evidence(self, model: str) -> int:
        """Return how many pieces of evidence a model had, also a deleted one."""
        ...
