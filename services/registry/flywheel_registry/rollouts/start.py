"""Starts a rollout, or promotes the first release of a model."""

from __future__ import annotations

from flywheel_common.clock import Clock
from flywheel_registry.audit.journal import Journal
from flywheel_registry.evidence.evidence import name_of
from flywheel_registry.gates.offline import NO_CHAMPION
from flywheel_registry.models.lookups import find_model, find_version, lock_model
from flywheel_registry.models.names import VersionName
from flywheel_registry.models.stage_changes import change_stage
from flywheel_registry.models.version import ModelVersion
from flywheel_registry.policies.rollout_policy import RolloutPolicy
from flywheel_registry.releases.errors import WrongModel
from flywheel_registry.releases.lookups import find_release
from flywheel_registry.releases.names import ReleaseName
from flywheel_registry.releases.release import Release
from flywheel_registry.rollouts.errors import AlreadyServing, NotStaged, RolloutActive
from flywheel_registry.rollouts.ports import RolloutRecords
from flywheel_registry.rollouts.rollout import Rollout, RolloutStep
from flywheel_registry.rollouts.routing import apply_routing
from flywheel_registry.rollouts.state_machine import Progress, RolloutState
from flywheel_registry.serving.champion import replace_champion
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
        model_name: str,
        challenger: ReleaseName,
        policy: RolloutPolicy | None,
        reason: str,
        by: str,
    ) -> Rollout:
        """Start a rollout in shadow; without a champion, promote the release on its offline gate alone.

        Raises UnknownModel, UnknownRelease, WrongModel, RolloutActive, NotStaged, AlreadyServing,
        InvalidPolicy.
        """
        await lock_model(records, model_name)
        model = await find_model(records, model_name)
        if challenger.parent != model_name:
            raise WrongModel(f"{challenger} is not a release of {model_name}.")
        release = await find_release(records, challenger)
        version = await find_version(records, VersionName.numbered(model_name, release.version))
        chosen = (policy or model.rollout_policy).check()
        active = await records.active_rollout(model_name)
        if active is not None:
            raise RolloutActive(
                f"{active.name} is active: wait for its end or abort it first.", rollout=active.name
            )
        if version.stage not in STARTABLE_STAGES:
            raise NotStaged(
                f"{version.name} is in stage {version.stage}: promote it to STAGING first.",
                stage=version.stage,
            )
        routing = await records.routing(model_name)
        if routing.champion == release.number:
            raise AlreadyServing(f"{release.name} serves already: there is nothing to roll out.")
        journal = Journal(records, model_name, self._clock.now(), by)
        if routing.champion is None:
            return await self._promote_first(records, journal, release, version, chosen, reason)
        why = reason or "started"
        rollout = await records.add_rollout(
            Rollout(
                model_name,
                release.number,
                version.number,
                champion=routing.champion,
                policy=chosen,
                reason=why,
                history=(RolloutStep(RolloutState.SHADOW, 0.0, journal.at, why),),
                created_at=journal.at,
                created_by=by,
            )
        )
        await apply_routing(records, rollout)
        await journal.write(
            "START_ROLLOUT", rollout.name, to_state=RolloutState.SHADOW, reason=f"{release.name}: {why}"
        )
        await records.emit(rollout.changed(why), journal.at)
        return rollout

    async def _promote_first(
        self,
        records: RolloutRecords,
        journal: Journal,
        release: Release,
        version: ModelVersion,
        policy: RolloutPolicy,
        reason: str,
    ) -> Rollout:
        """Promote the first release of a model; the stored rollout is PROMOTED from the beginning."""
        why = f"{reason}: {NO_CHAMPION}" if reason else NO_CHAMPION
        offline = await records.newest_evidence_of(version.model, version.number, "OFFLINE")
        proof = name_of(offline)
        progress = Progress(RolloutState.PROMOTED, 100.0)
        step = RolloutStep(progress.state, 100.0, journal.at, why, offline.number if offline else None)
        rollout = await records.add_rollout(
            Rollout(
                version.model,
                release.number,
                version.number,
                progress=progress,
                policy=policy,
                reason=why,
                history=(step,),
                created_at=journal.at,
                created_by=journal.actor,
                ended_at=journal.at,
            )
        )
        if version.stage is Stage.STAGING:
            version = await change_stage(records, journal, version, Stage.CANDIDATE, why, evidence=proof)
        await replace_champion(records, journal, release, version, why, evidence=proof)
        await journal.write(
            "START_ROLLOUT",
            rollout.name,
            to_state=progress.state,
            reason=f"{release.name}: {why}",
            evidence=proof,
        )
        await records.emit(rollout.changed(why), journal.at)
        return rollout
