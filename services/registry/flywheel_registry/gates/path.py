"""The gates on a promotion path: the offline gate, then stored shadow and canary evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from flywheel_registry.evidence.findings import Findings
from flywheel_registry.evidence.ports import EvidenceRecords
from flywheel_registry.gates.offline import NO_CHAMPION, GateResult, evaluate_offline
from flywheel_registry.models.lookups import find_model
from flywheel_registry.models.ports import ModelRecords
from flywheel_registry.models.version import ModelVersion
from flywheel_registry.stages.transitions import Stage

EVIDENCE_KINDS = {Stage.STAGING: "OFFLINE", Stage.CANDIDATE: "SHADOW", Stage.PRODUCTION: "CANARY"}
"""Stage → kind of the evidence that the gate to it produces."""


class GateRecords(ModelRecords, EvidenceRecords, Protocol):
    """What the gates read: the model's policy, and evidence of earlier rollouts."""


async def evaluate_path(
    records: GateRecords,
    version: ModelVersion,
    champion: ModelVersion | None,
    path: Sequence[Stage],
    metrics: Mapping[str, float],
) -> GateResult:
    """Evaluate the gate of each stage in `path`; the result passes when all of them pass."""
    passed, findings, values = True, tuple[str, ...](), dict[str, float]()
    for stage in path:
        gate = await _evaluate_gate(records, version, champion, stage, metrics)
        passed = passed and gate.passed
        findings += gate.findings
        values |= gate.values
    return GateResult(passed, findings, values)


async def _evaluate_gate(
    records: GateRecords,
    version: ModelVersion,
    champion: ModelVersion | None,
    stage: Stage,
    metrics: Mapping[str, float],
) -> GateResult:
    if stage is Stage.STAGING:
        model = await find_model(records, version.model)
        return evaluate_offline(model.gate_policy, metrics, champion.metrics if champion else None)
    findings = Findings()
    if champion is None:
        findings.add(True, f"{stage} without shadow or canary, {NO_CHAMPION}")
    elif stage is Stage.CANDIDATE:
        shadow = await records.newest_evidence_of(version.model, version.number, "SHADOW")
        if shadow is not None and shadow.passed:
            findings.add(True, f"shadow comparison with the champion, in {shadow.name}")
        else:
            findings.add(
                False,
                "shadow comparison with the champion, no passed shadow evidence: StartRollout gathers it",
            )
    else:
        findings.add(
            False, "canary comparison with the champion, no passed canary evidence: StartRollout gathers it"
        )
    return GateResult(findings.passed, findings.lines(), {})
