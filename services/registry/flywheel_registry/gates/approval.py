"""The approval gate: enough people other than the author approved the version."""

from __future__ import annotations

from flywheel_registry.evidence.findings import Findings
from flywheel_registry.gates.gate import Candidate, GateRecords
from flywheel_registry.gates.offline import GateResult


class ApprovalGate:
    """Passes with `min_approvals` approvals; without such a rule it has no finding."""

    async def evaluate(self, records: GateRecords, candidate: Candidate) -> GateResult:
        """Count the approvals of the version."""
        needed = candidate.policy.min_approvals
        if not needed:
            return GateResult(True, (), {})
        version = candidate.version
        names = [one.approver for one in await records.approvals(version.model, version.number)]
        findings = Findings()
        by = f" ({', '.join(names)})" if names else ""
        findings.add(len(names) >= needed, f"approvals: {len(names)}{by}, at least {needed} needed")
        return GateResult(findings.passed, findings.lines(), {"approvals": float(len(names))})
