"""Look-ups of evidence that raise an error when it does not exist."""

from __future__ import annotations

from flywheel_registry.evidence.errors import UnknownEvidence
from flywheel_registry.evidence.evidence import Evidence
from flywheel_registry.evidence.names import EvidenceName
from flywheel_registry.evidence.ports import EvidenceRecords


async def find_evidence(records: EvidenceRecords, name: EvidenceName) -> Evidence:
    """Return the evidence. Raises UnknownEvidence."""
    found = await records.evidence(name.parent, name.number)
    if found is None:
        raise UnknownEvidence(
            f"Evidence {name} does not exist: take a name from an audit entry or a rollout.", evidence=name
        )
    return found
