"""The gates on a promotion path: offline, stored shadow and canary evidence, experiments, approvals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from flywheel_registry.evidence.evidence import Evidence
from flywheel_registry.evidence.experiment_verdict import ExperimentVerdict
from flywheel_registry.evidence.findings import Findings
from flywheel_registry.gates.approval import ApprovalGate
from flywheel_registry.gates.experiment import ExperimentGate
from flywheel_registry.gates.gate import Candidate, Gate, GateRecords
from flywheel_registry.gates.measured import newest_evaluation, with_evaluation
from flywheel_registry.gates.offline import CHAMPION_PREFIX, NO_CHAMPION, GateResult, evaluate_offline
from flywheel_registry.models.lookups import find_model
from flywheel_registry.models.version import ModelVersion
from flywheel_registry.policies.snapshot import policy_snapshot
from flywheel_registry.stages.transitions import Stage

EVIDENCE_KINDS = {Stage.STAGING: "OFFLINE", Stage.CANDIDATE: "SHADOW", Stage.PRODUCTION: "CANARY"}
"""Stage → kind of the evidence that the gate to it produces."""


class OfflineGate:
    """Bounds on metrics, absolute and relative to the champion."""

    async def evaluate(self, records: GateRecords, candidate: Candidate) -> GateResult:
        """Compare the metrics with the policy's bounds."""
        champion = candidate.champion
        return evaluate_offline(candidate.policy, candidate.metrics, champion.metrics if champion else None)


class ShadowGate:
    """A passed shadow comparison with the champion of today, from a rollout."""

    async def evaluate(self, records: GateRecords, candidate: Candidate) -> GateResult:
        """Look for stored shadow evidence."""
        findings, version = Findings(), candidate.version
        if candidate.champion is None:
            findings.add(True, f"{Stage.CANDIDATE} without shadow, {NO_CHAMPION}")
            return GateResult(findings.passed, findings.lines(), {})
        shadow = await records.newest_evidence_of(version.model, version.number, "SHADOW")
        needed = "shadow comparison with the champion"
        if shadow is None or not shadow.passed:
            findings.add(False, f"{needed}, no passed shadow evidence: StartRollout gathers it")
        elif shadow.champion != candidate.champion.number:
            compared = f"{shadow.name} compared with version {shadow.champion}"
            findings.add(False, f"{needed}, {compared}, the champion is version {candidate.champion.number}")
        else:
            findings.add(True, f"{needed}, in {shadow.name}")
        return GateResult(findings.passed, findings.lines(), {})


class OnlineGate:
    """A load and a canary by the gateways, which only a rollout provides and then promotes by itself."""

    async def evaluate(self, records: GateRecords, candidate: Candidate) -> GateResult:
        """Refer to StartRollout."""
        findings = Findings()
        needed = "canary comparison with the champion" if candidate.champion else "loaded by the gateways"
        findings.add(False, f"{needed}, no passed evidence: StartRollout gathers it")
        return GateResult(findings.passed, findings.lines(), {})


GATES: Mapping[Stage, Sequence[Gate]] = {
    Stage.STAGING: (OfflineGate(),),
    Stage.CANDIDATE: (ShadowGate(),),
    Stage.PRODUCTION: (OnlineGate(), ExperimentGate(), ApprovalGate()),
}
"""Stage → the gates to it, all of which must pass."""


async def evaluate_path(
    records: GateRecords,
    version: ModelVersion,
    champion: ModelVersion | None,
    path: Sequence[Stage],
    metrics: Mapping[str, float],
    experiments: tuple[ExperimentVerdict, ...] | None,
) -> GateResult:
    """Evaluate the gates of each stage in `path`; the result passes when all of them pass."""
    policy = (await find_model(records, version.model)).gate_policy
    candidate = Candidate(version, champion, metrics, policy, experiments)
    return await evaluate_gates(records, candidate, [gate for stage in path for gate in GATES.get(stage, ())])


async def evaluate_gates(records: GateRecords, candidate: Candidate, gates: Sequence[Gate]) -> GateResult:
    """Evaluate gates one after the other; the result passes when all of them pass."""
    passed, findings, values = True, tuple[str, ...](), dict[str, float]()
    for gate in gates:
        result = await gate.evaluate(records, candidate)
        passed = passed and result.passed
        findings += result.findings
        values |= result.values
    return GateResult(passed, findings, values)


async def newest_offline_proof(
    records: GateRecords, version: ModelVersion, champion: ModelVersion | None, by: str, at: datetime
) -> Evidence:
    """Return evidence of the offline gate against `champion` and the policy of now, passed or not.

    Stored evidence counts when it was compared with this champion under this policy and is newer than the
    version's evaluation; otherwise the gate is evaluated again, with the version's metrics, those that the
    stored evidence was measured with, and those of the evaluation.
    """
    model = await find_model(records, version.model)
    policy = policy_snapshot(model.gate_policy)
    number = champion.number if champion else None
    stored = await records.newest_evidence_of(version.model, version.number, "OFFLINE")
    evaluation = await newest_evaluation(records, version)
    if (
        stored is not None
        and stored.passed
        and (stored.champion, stored.policy) == (number, policy)
        and (evaluation is None or evaluation.number < stored.number)
    ):
        return stored
    metrics = dict(version.metrics) if stored is None else _known_metrics(version, stored, number)
    metrics = with_evaluation(metrics, evaluation, number)
    result = evaluate_offline(model.gate_policy, metrics, champion.metrics if champion else None)
    return await records.add_evidence(
        Evidence(
            model=version.model,
            kind="OFFLINE",
            version=version.number,
            values=result.values,
            findings=result.findings,
            passed=result.passed,
            created_at=at,
            producer=by,
            champion=number,
            policy=policy,
        )
    )


def _known_metrics(version: ModelVersion, stored: Evidence, champion: int | None) -> dict[str, float]:
    """Return the version's metrics and those that stored evidence was measured with.

    The metrics of a champion on the version's rows count only for the champion that they were measured with.
    """
    own = {n: v for n, v in stored.values.items() if not n.startswith(("champion.", "delta."))}
    metrics = {**version.metrics, **own}
    if stored.champion != champion:
        return {name: value for name, value in metrics.items() if not name.startswith(CHAMPION_PREFIX)}
    base = {n.removeprefix("champion."): v for n, v in stored.values.items() if n.startswith("champion.")}
    return metrics | {f"{CHAMPION_PREFIX}{name}": value for name, value in base.items()}
