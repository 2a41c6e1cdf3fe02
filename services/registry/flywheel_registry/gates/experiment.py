"""The experiment gate: what the experiments on a release have shown."""

from __future__ import annotations

from flywheel_registry.evidence.experiment_verdict import ROLL_BACK, SHIP, ExperimentVerdict
from flywheel_registry.evidence.findings import Findings
from flywheel_registry.gates.gate import Candidate, GateRecords
from flywheel_registry.gates.offline import GateResult
from flywheel_registry.policies.gate_policy import ExperimentRequirement, ExperimentRule


class ExperimentGate:
    """Passes when the verdicts meet the rule of the policy; without such a rule it has no finding."""

    async def evaluate(self, records: GateRecords, candidate: Candidate) -> GateResult:
        """Compare the verdicts that were read from the monitor with the rule."""
        rule, found = candidate.policy.experiment, candidate.experiments
        findings = Findings()
        if rule is not None and found is None:
            findings.add(False, "experiment: the monitor does not answer")
        elif rule is not None and found is not None:
            findings.add(*_decide(rule, found))
        return GateResult(findings.passed, findings.lines(), {})


def _decide(rule: ExperimentRule, found: tuple[ExperimentVerdict, ...]) -> tuple[bool, str]:
    """Return whether the rule holds, and its line."""
    if rule.requirement is ExperimentRequirement.NO_ROLL_BACK:
        bad = next((one for one in found if one.verdict == ROLL_BACK), None)
        return (
            bad is None,
            f"experiment: {_line(bad)}" if bad else f"experiment: none of {len(found)} ROLL_BACK",
        )
    named = [one for one in found if rule.experiment in ("", one.experiment)]
    if not named:
        wanted = rule.experiment or "an experiment"
        return False, f"experiment: {wanted} with this release as treatment, SHIP needed: there is none"
    return named[0].verdict == SHIP, f"experiment: {_line(named[0])}, SHIP needed"


def _line(one: ExperimentVerdict) -> str:
    return f"{one.experiment}: {one.verdict}: {one.reason}"
