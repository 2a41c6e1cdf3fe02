"""Starts a rollout."""

from __future__ import annotations

from collections.abc import Sequence

from flywheel_common.clock import Clock
from flywheel_registry.audit.journal import Journal
from flywheel_registry.audit.reasons import require_reason
from flywheel_registry.evidence.evidence import Evidence
from flywheel_registry.evidence.experiment_verdict import ExperimentVerdict
from flywheel_registry.gates.approval import ApprovalGate
from flywheel_registry.gates.errors import GateFailed
from flywheel_registry.gates.experiment import ExperimentGate
from flywheel_registry.gates.gate import Candidate, Gate
from flywheel_registry.gates.offline import NO_CHAMPION
from flywheel_registry.gates.path import evaluate_gates, newest_offline_proof
from flywheel_registry.models.lookups import find_model, find_version, lock_model
from flywheel_registry.models.names import VersionName
from flywheel_registry.models.version import ModelVersion
from flywheel_registry.policies.rollout_policy import RolloutPolicy
from flywheel_registry.policies.snapshot import policy_changes
from flywheel_registry.releases.lookups import find_release
from flywheel_registry.releases.names import ReleaseName
from flywheel_registry.releases.release import Release
from flywheel_registry.rollouts.errors import AlreadyServing, NotStaged, RolloutActive
from flywheel_registry.rollouts.ports import RolloutRecords
from flywheel_registry.rollouts.rollout import Rollout, RolloutStep
from flywheel_registry.rollouts.routing import apply_routing
from flywheel_registry.rollouts.state_machine import RolloutState
from flywheel_registry.stages.transitions import Stage

STARTABLE_STAGES = (Stage.STAGING, Stage.CANDIDATE, Stage.PRODUCTION)
"""Stages that the challenger's version may have.

PRODUCTION is included for a new release (threshold, calibration) of the version that serves.
"""


class RolloutStart:
    """Starts rollouts."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    async def start(
        self,
        records: RolloutRecords,
        challenger: ReleaseName,
        policy: RolloutPolicy | None,
        reason: str,
        by: str,
        *,
        override: bool = False,
        experiments: tuple[ExperimentVerdict, ...] | None = (),
    ) -> Rollout:
        """Start a rollout, which waits until the gateways have loaded the release.

        Without a champion there is nothing to compare with: the loaded release is promoted.
        The version must pass the offline gate against today's champion, and the gates for approvals and
        experiments, unless `override`. `experiments`: see `Candidate`. A `policy` other than the model's, and
        an override, need a reason and are audited. Raises UnknownModel, UnknownRelease,
        RolloutActive, NotStaged, AlreadyServing, InvalidPolicy, GateFailed, ReasonRequired.
        """
        model_name = challenger.parent
        await lock_model(records, model_name)
        model = await find_model(records, model_name)
        release = await find_release(records, challenger)
        version = await find_version(records, VersionName.numbered(model_name, release.version))
        chosen = (policy or model.rollout_policy).check()
        await _check_startable(records, version, release)
        journal = Journal(records, model_name, self._clock.now(), by)
        if changes := policy_changes(model.rollout_policy, chosen):
            why = require_reason(reason, "A rollout policy other than the model's")
            await journal.write("OVERRIDE_POLICY", release.name, reason=f"{why}: {changes}")
        proof = await self._offline_proof(records, journal, version, reason, override=override)
        gates: list[Gate] = [ApprovalGate()]
        if not chosen.until_verdict:  # An A/B test is decided by the experiment that it starts.
            gates.append(ExperimentGate())
        shown = await _pass_gates(records, journal, version, experiments, gates, reason, override=override)
        champion = (await records.routing(model_name)).champion
        why = reason or "started"
        if champion is None:
            why = f"{reason}: {NO_CHAMPION}" if reason else NO_CHAMPION
        rollout = await records.add_rollout(
            Rollout(
                model_name,
                release.number,
                version.number,
                champion=champion,
                policy=chosen,
                reason=why,
                history=(RolloutStep(RolloutState.PENDING_LOAD, 0.0, journal.at, why),),
                step_entered_at=journal.at,
                created_at=journal.at,
                created_by=by,
            )
        )
        await apply_routing(records, rollout)
        await journal.write(
            "START_ROLLOUT",
            rollout.name,
            to_state=rollout.progress.state,
            reason="; ".join((f"{release.name}: {why}", *shown)),
            evidence=proof,
        )
        await records.emit(rollout.changed(why), journal.at)
        return rollout

    async def _offline_proof(
        self, records: RolloutRecords, journal: Journal, version: ModelVersion, reason: str, *, override: bool
    ) -> Evidence | None:
        """Return evidence of the offline gate against today's champion; None for the champion's own version.

        Raises GateFailed, ReasonRequired.
        """
        champion = await records.champion(version.model)
        if champion is not None and champion.number == version.number:
            return None
        proof = await newest_offline_proof(records, version, champion, journal.actor, journal.at)
        if proof.passed:
            return proof
        failed = "; ".join(line for line in proof.findings if line.startswith("FAILED"))
        if not override:
            raise GateFailed(f"{version.name} does not pass the offline gate today: {failed}.")
        why = require_reason(reason, "An override")
        await journal.write("OVERRIDE", version.name, reason=f"{why}: {failed}", evidence=proof)
        return proof


async def _pass_gates(
    records: RolloutRecords,
    journal: Journal,
    version: ModelVersion,
    experiments: tuple[ExperimentVerdict, ...] | None,
    gates: Sequence[Gate],
    reason: str,
    *,
    override: bool,
) -> tuple[str, ...]:
    """Return the findings; raise GateFailed unless the gates pass, or `override` with a reason.

    A rollout promotes by itself, so it needs approvals and experiments before it begins.
    """
    champion = await records.champion(version.model)
    if champion is not None and champion.number == version.number:
        return ()
    policy = (await find_model(records, version.model)).gate_policy
    candidate = Candidate(version, champion, version.metrics, policy, experiments)
    result = await evaluate_gates(records, candidate, gates)
    if result.passed:
        return result.findings
    failed = "; ".join(line for line in result.findings if line.startswith("FAILED"))
    if not override:
        raise GateFailed(f"{version.name} does not pass the gates to production: {failed}.")
    why = require_reason(reason, "An override")
    await journal.write("OVERRIDE", version.name, reason=f"{why}: {failed}")
    return ()


async def _check_startable(records: RolloutRecords, version: ModelVersion, release: Release) -> None:
    """Raise RolloutActive, NotStaged or AlreadyServing unless a rollout of the release may start."""
    active = await records.active_rollout(version.model)
    if active is not None:
        raise RolloutActive(
            f"{active.name} is active: wait for its end or abort it first.", rollout=active.name
        )
    if version.stage not in STARTABLE_STAGES:
        raise NotStaged(
            f"{version.name} is in stage {version.stage}: promote it to STAGING first.",
            stage=version.stage,
        )
    if (await records.routing(version.model)).champion == release.number:
        raise AlreadyServing(f"{release.name} serves already: there is nothing to roll out.")
