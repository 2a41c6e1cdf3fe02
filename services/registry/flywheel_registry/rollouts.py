"""Rollouts: starting, moving on by verdict or by hand, pausing, ending."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from flywheel_common.clock import Clock
from flywheel_common.errors import FailedPrecondition, InvalidArgument
from flywheel_registry import rollout as machine
from flywheel_registry.absent import (
    find_model,
    find_release,
    find_rollout,
    find_version,
    lock_model,
    require_reason,
)
from flywheel_registry.changes import Changes
from flywheel_registry.names import ReleaseName, RolloutName, VersionName
from flywheel_registry.policy import RolloutPolicy
from flywheel_registry.ports import Records
from flywheel_registry.promotion import NO_CHAMPION, RolloutActive
from flywheel_registry.resources import Evidence, ModelVersion, Release, Rollout, RolloutStep
from flywheel_registry.rollout import Comparison, Decision, Progress, RolloutState, Verdict
from flywheel_registry.stages import Stage

STARTABLE = (Stage.STAGING, Stage.CANDIDATE, Stage.PRODUCTION)
"""Stages of a challenger's version. PRODUCTION: a new release (threshold, calibration) of the version that serves."""


class NotStaged(FailedPrecondition):
    reason = "NOT_STAGED"


class Rollouts:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    async def start(
        self,
        records: Records,
        model_name: str,
        challenger: ReleaseName,
        policy: RolloutPolicy | None,
        reason: str,
        by: str,
    ) -> Rollout:
        """Into shadow; without a champion straight to PRODUCTION on the offline gate, which the audit says.
        Raises RolloutActive, NotStaged, FailedPrecondition ALREADY_SERVING, InvalidPolicy."""
        await lock_model(records, model_name)
        model = await find_model(records, model_name)
        if challenger.parent != model_name:
            raise InvalidArgument(f"{challenger} is not a release of {model_name}.", reason="WRONG_MODEL")
        release = await find_release(records, challenger)
        version = await find_version(records, VersionName.parse(f"{model_name}/versions/{release.version}"))
        chosen = (policy or model.rollout_policy).check()
        active = await records.active_rollout(model_name)
        if active is not None:
            raise RolloutActive(
                f"{active.name} is active: wait for its end or abort it first.", rollout=active.name
            )
        if version.stage not in STARTABLE:
            raise NotStaged(
                f"{version.name} is in stage {version.stage}: PromoteModelVersion must bring it to STAGING first.",
                stage=version.stage,
            )
        routing = await records.routing(model_name)
        if routing.champion == release.number:
            raise FailedPrecondition(
                f"{release.name} serves already: there is nothing to roll out.", reason="ALREADY_SERVING"
            )
        now = self._clock.now()
        changes = Changes(records, model_name, now, by)
        if routing.champion is None:
            return await self._promote_first(records, changes, release, version, chosen, reason)
        progress = Progress()
        why = reason or "started"
        rollout = await records.add_rollout(
            Rollout(
                model_name, release.number, version.number, champion=routing.champion, progress=progress, policy=chosen, reason=why,
                history=(RolloutStep(progress.state, 0.0, now, why),), created_at=now, created_by=by,
            )
        )  # fmt: skip
        await changes.route(rollout)
        await changes.note(
            "START_ROLLOUT", rollout.name, to_state=progress.state, reason=f"{release.name}: {why}"
        )
        await changes.announce(rollout, why)
        return rollout

    async def _promote_first(
        self,
        records: Records,
        changes: Changes,
        release: Release,
        version: ModelVersion,
        policy: RolloutPolicy,
        reason: str,
    ) -> Rollout:
        why = f"{reason}: {NO_CHAMPION}" if reason else NO_CHAMPION
        proof = await records.newest_evidence_of(version.model, version.number, "OFFLINE")
        progress = Progress(RolloutState.PROMOTED, 100.0)
        step = RolloutStep(progress.state, 100.0, changes.at, why, proof.number if proof else None)
        rollout = await records.add_rollout(
            Rollout(
                version.model, release.number, version.number, progress=progress, policy=policy, reason=why, history=(step,),
                created_at=changes.at, created_by=changes.by, ended_at=changes.at,
            )
        )  # fmt: skip
        if version.stage is Stage.STAGING:
            version = await changes.move(version, Stage.CANDIDATE, why, evidence=proof)
        await changes.crown(release, version, why, evidence=proof)
        await changes.note(
            "START_ROLLOUT",
            rollout.name,
            to_state=progress.state,
            reason=f"{release.name}: {why}",
            evidence=proof,
        )
        await changes.announce(rollout, why)
        return rollout

    async def decide(
        self, records: Records, seen: Rollout, verdict: Verdict, comparison: Comparison | None, by: str
    ) -> Rollout | None:
        """Applies a verdict made for `seen`. None when the rollout has moved since: the verdict is about another step."""
        started = seen.step_started_at or (comparison.first_event if comparison else None)
        if verdict.decision is Decision.HOLD or comparison is None:
            held = replace(seen, reason=verdict.reason, step_started_at=started, last_decision=Decision.HOLD)
            if held != seen:
                await records.note_hold(held, seen.progress)
            return held
        await lock_model(records, seen.model)
        rollout = await records.rollout(seen.model, seen.number)
        if rollout is None or rollout.progress != seen.progress:
            return None
        changes = Changes(records, seen.model, self._clock.now(), by)
        passed = verdict.decision is Decision.ADVANCE
        evidence = await records.add_evidence(
            Evidence(
                seen.model, seen.progress.state.value, seen.challenger_version, comparison.values(), verdict.findings, passed,
                created_at=changes.at,
            )
        )  # fmt: skip
        if passed:
            return await self._advance(
                records, changes, rollout, verdict.reason, evidence, comparison.last_event
            )
        return await self._take_back(records, changes, rollout, verdict, evidence)

    async def _advance(
        self, records: Records, changes: Changes, rollout: Rollout, reason: str, evidence: Evidence | None, event_time: datetime | None,
        action: str = "ADVANCE",
    ) -> Rollout:  # fmt: skip
        """To the next step. Its event time begins where the evidence of the last one ended."""
        before, after = rollout.progress, machine.advanced(rollout.progress, rollout.policy)
        version = await self._challenger(records, rollout)
        if version.stage is Stage.STAGING:
            version = await changes.move(version, Stage.CANDIDATE, reason, evidence=evidence)
        moved = replace(rollout, step_started_at=event_time or rollout.step_started_at)
        if after.state is RolloutState.PROMOTED:
            release = await find_release(
                records, ReleaseName.parse(f"{rollout.model}/releases/{rollout.challenger}")
            )
            await changes.crown(release, version, reason, evidence=evidence)
        return await self._store(
            records, changes, moved, before, after, Decision.ADVANCE, reason, evidence, action
        )

    async def _take_back(
        self, records: Records, changes: Changes, rollout: Rollout, verdict: Verdict, evidence: Evidence
    ) -> Rollout:
        """Refused in shadow, or taken back from canary. The version is REJECTED, but for a canary that only broke a
        guardrail: errors and latency may come from outside the model, so it stays CANDIDATE for another try."""
        before, after = rollout.progress, machine.taken_back(rollout.progress)
        moved = await self._store(
            records,
            changes,
            rollout,
            before,
            after,
            verdict.decision,
            verdict.reason,
            evidence,
            verdict.decision.value,
        )
        version = await self._challenger(records, rollout)
        excusable = verdict.by_guardrail and after.state is RolloutState.ROLLED_BACK
        if version.stage in (Stage.STAGING, Stage.CANDIDATE) and not excusable:
            await changes.move(version, Stage.REJECTED, verdict.reason, action="REJECT", evidence=evidence)
        return moved

    async def _store(
        self, records: Records, changes: Changes, rollout: Rollout, before: Progress, after: Progress, decision: Decision | None, reason: str,
        evidence: Evidence | None, action: str,
    ) -> Rollout:  # fmt: skip
        step = RolloutStep(
            after.state, after.challenger_percent, changes.at, reason, evidence.number if evidence else None
        )
        moved = replace(
            rollout, progress=after, last_decision=decision, reason=reason, ended_at=None if after.active else changes.at,
            history=(*rollout.history, step),
        )  # fmt: skip
        await records.change_rollout(moved, step)
        if after.state is not RolloutState.PROMOTED:
            await changes.route(moved)
        await changes.note(
            action,
            moved.name,
            from_state=_label(before),
            to_state=_label(after),
            reason=reason,
            evidence=evidence,
        )
        await changes.announce(moved, reason)
        return moved

    async def _challenger(self, records: Records, rollout: Rollout) -> ModelVersion:
        return await find_version(
            records, VersionName.parse(f"{rollout.model}/versions/{rollout.challenger_version}")
        )

    # ------------------------------------------------------------------------------------------------- by hand

    async def pause(self, records: Records, name: RolloutName, reason: str, by: str) -> Rollout:
        """Stops deciding; routing stays. Raises RolloutEnded."""
        rollout = await self._locked(records, name)
        after = machine.paused(rollout.progress)
        if after == rollout.progress:
            return rollout
        changes = Changes(records, rollout.model, self._clock.now(), by)
        return await self._store(
            records,
            changes,
            rollout,
            rollout.progress,
            after,
            rollout.last_decision,
            reason or "paused",
            None,
            "PAUSE",
        )

    async def resume(self, records: Records, name: RolloutName, reason: str, by: str) -> Rollout:
        """Goes on deciding. Raises NotPaused."""
        rollout = await self._locked(records, name)
        after = machine.resumed(rollout.progress)
        changes = Changes(records, rollout.model, self._clock.now(), by)
        return await self._store(
            records,
            changes,
            rollout,
            rollout.progress,
            after,
            rollout.last_decision,
            reason or "resumed",
            None,
            "RESUME",
        )

    async def abort(self, records: Records, name: RolloutName, reason: str, by: str) -> Rollout:
        """The champion serves everybody; the challenger's version keeps its stage. Raises RolloutEnded."""
        rollout = await self._locked(records, name)
        return await self.end(
            records, Changes(records, rollout.model, self._clock.now(), by), rollout, reason or "aborted"
        )

    async def end(self, records: Records, changes: Changes, rollout: Rollout, reason: str) -> Rollout:
        """Aborts inside somebody else's change; needs the model's lock."""
        after = machine.aborted(rollout.progress)
        return await self._store(
            records, changes, rollout, rollout.progress, after, rollout.last_decision, reason, None, "ABORT"
        )

    async def skip(self, records: Records, name: RolloutName, reason: str, by: str) -> Rollout:
        """To the next step without evidence. Raises RolloutEnded, InvalidArgument REASON_REQUIRED."""
        require_reason(reason, "Skipping a step")
        rollout = await self._locked(records, name)
        changes = Changes(records, rollout.model, self._clock.now(), by)
        return await self._advance(records, changes, rollout, f"skipped: {reason}", None, None, "SKIP")

    async def _locked(self, records: Records, name: RolloutName) -> Rollout:
        await lock_model(records, name.parent)
        return await find_rollout(records, name)


def _label(progress: Progress) -> str:
    """`CANARY 5 %`."""
    if progress.state is RolloutState.CANARY:
        return f"{progress.state} {progress.challenger_percent:g} %"
    return progress.state.value
