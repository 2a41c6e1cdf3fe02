"""Changes a rollout after its start: by a verdict on its evidence, or by an operator."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from flywheel_common.clock import Clock
from flywheel_registry.audit.journal import Journal
from flywheel_registry.audit.reasons import require_reason
from flywheel_registry.evidence.evidence import Evidence, name_of
from flywheel_registry.models.lookups import find_version, lock_model
from flywheel_registry.models.names import VersionName
from flywheel_registry.models.stage_changes import change_stage
from flywheel_registry.models.version import ModelVersion
from flywheel_registry.releases.lookups import find_release
from flywheel_registry.releases.names import ReleaseName
from flywheel_registry.rollouts import state_machine
from flywheel_registry.rollouts.comparison import Comparison
from flywheel_registry.rollouts.decision import Decision, Verdict
from flywheel_registry.rollouts.lookups import find_rollout
from flywheel_registry.rollouts.names import RolloutName
from flywheel_registry.rollouts.ports import RolloutRecords
from flywheel_registry.rollouts.rollout import Rollout, RolloutStep
from flywheel_registry.rollouts.routing import apply_routing
from flywheel_registry.rollouts.state_machine import Progress, RolloutState
from flywheel_registry.serving.champion import replace_champion
from flywheel_registry.stages.transitions import Stage


class RolloutLifecycle:
    """Applies verdicts to rollouts, and pauses, resumes, skips and aborts them."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    # ------------------------------------------------------------------------------------------ by evidence

    async def apply_verdict(
        self,
        records: RolloutRecords,
        judged: Rollout,
        verdict: Verdict,
        comparison: Comparison | None,
        by: str,
    ) -> Rollout | None:
        """Apply the verdict on the rollout as it was judged, and return the changed rollout.

        Returns None when the rollout has changed since: the verdict is about an earlier step.
        """
        started = judged.step_started_at or (comparison.covered_from if comparison else None)
        if verdict.decision is Decision.HOLD or comparison is None:
            held = replace(
                judged, reason=verdict.reason, step_started_at=started, last_decision=Decision.HOLD
            )
            if held != judged:
                await records.note_hold(held, judged.progress)
            return held
        await lock_model(records, judged.model)
        rollout = await records.rollout(judged.model, judged.number)
        if rollout is None or rollout.progress != judged.progress:
            return None
        journal = Journal(records, judged.model, self._clock.now(), by)
        evidence = await records.add_evidence(
            Evidence(
                model=judged.model,
                kind=judged.progress.state.value,
                version=judged.challenger_version,
                values=comparison.values(),
                findings=verdict.findings,
                passed=verdict.decision is Decision.ADVANCE,
                created_at=journal.at,
            )
        )
        if evidence.passed:
            return await self._advance(
                records,
                journal,
                rollout,
                reason=verdict.reason,
                evidence=evidence,
                step_started_at=comparison.covered_until,
            )
        return await self._withdraw(records, journal, rollout, verdict, evidence)

    async def _advance(
        self,
        records: RolloutRecords,
        journal: Journal,
        rollout: Rollout,
        *,
        reason: str,
        evidence: Evidence | None = None,
        step_started_at: datetime | None = None,
        action: str = "ADVANCE",
    ) -> Rollout:
        """Move to the next step. Its event time begins where the evidence of the last step ended."""
        after = state_machine.advance(rollout.progress, rollout.policy)
        proof = name_of(evidence)
        version = await self._challenger_version(records, rollout)
        if version.stage is Stage.STAGING:
            version = await change_stage(records, journal, version, Stage.CANDIDATE, reason, evidence=proof)
        if after.state is RolloutState.PROMOTED:
            release = await find_release(records, ReleaseName.numbered(rollout.model, rollout.challenger))
            await replace_champion(records, journal, release, version, reason, evidence=proof)
        return await self._change(
            records,
            journal,
            replace(rollout, step_started_at=step_started_at or rollout.step_started_at),
            after,
            action=action,
            reason=reason,
            decision=Decision.ADVANCE,
            evidence=evidence,
        )

    async def _withdraw(
        self,
        records: RolloutRecords,
        journal: Journal,
        rollout: Rollout,
        verdict: Verdict,
        evidence: Evidence,
    ) -> Rollout:
        """End the rollout without promotion and reject the challenger's version.

        A version that breached a guardrail in canary stays CANDIDATE and may try again: errors and latency
        can have causes outside the model.
        """
        after = state_machine.withdraw(rollout.progress)
        changed = await self._change(
            records,
            journal,
            rollout,
            after,
            action=verdict.decision.value,
            reason=verdict.reason,
            decision=verdict.decision,
            evidence=evidence,
        )
        version = await self._challenger_version(records, rollout)
        may_try_again = verdict.by_guardrail and after.state is RolloutState.ROLLED_BACK
        if version.stage in (Stage.STAGING, Stage.CANDIDATE) and not may_try_again:
            await change_stage(
                records,
                journal,
                version,
                Stage.REJECTED,
                verdict.reason,
                action="REJECT",
                evidence=evidence.name,
            )
        return changed

    # ------------------------------------------------------------------------------------------ by operators

    async def pause(self, records: RolloutRecords, name: RolloutName, reason: str, by: str) -> Rollout:
        """Stop deciding; the routing stays. Raises RolloutEnded."""
        rollout = await self._lock(records, name)
        after = state_machine.pause(rollout.progress)
        if after == rollout.progress:
            return rollout
        journal = self._journal(records, rollout, by)
        return await self._change(records, journal, rollout, after, action="PAUSE", reason=reason or "paused")

    async def resume(self, records: RolloutRecords, name: RolloutName, reason: str, by: str) -> Rollout:
        """Continue deciding. Raises NotPaused."""
        rollout = await self._lock(records, name)
        after = state_machine.resume(rollout.progress)
        journal = self._journal(records, rollout, by)
        return await self._change(
            records, journal, rollout, after, action="RESUME", reason=reason or "resumed"
        )

    async def abort(self, records: RolloutRecords, name: RolloutName, reason: str, by: str) -> Rollout:
        """End the rollout: the champion serves alone, the challenger's version keeps its stage.

        Raises RolloutEnded.
        """
        rollout = await self._lock(records, name)
        return await self.end(records, self._journal(records, rollout, by), rollout, reason or "aborted")

    async def end(self, records: RolloutRecords, journal: Journal, rollout: Rollout, reason: str) -> Rollout:
        """Abort a rollout inside another change that holds the model's lock. Raises RolloutEnded."""
        after = state_machine.abort(rollout.progress)
        return await self._change(records, journal, rollout, after, action="ABORT", reason=reason)

    async def roll_back(
        self, records: RolloutRecords, journal: Journal, rollout: Rollout, reason: str
    ) -> Rollout:
        """End a rollout as ROLLED_BACK by an operator; the challenger's version keeps its stage.

        The transaction must hold the model's lock. Raises RolloutEnded.
        """
        after = state_machine.withdraw(rollout.progress)
        return await self._change(records, journal, rollout, after, action="ROLLBACK", reason=reason)

    async def skip(self, records: RolloutRecords, name: RolloutName, reason: str, by: str) -> Rollout:
        """Move to the next step without evidence. Raises RolloutEnded, ReasonRequired."""
        require_reason(reason, "Skipping a step")
        rollout = await self._lock(records, name)
        journal = self._journal(records, rollout, by)
        return await self._advance(records, journal, rollout, reason=f"skipped: {reason}", action="SKIP")

    # ------------------------------------------------------------------------------------------ shared

    async def _change(
        self,
        records: RolloutRecords,
        journal: Journal,
        rollout: Rollout,
        after: Progress,
        *,
        action: str,
        reason: str,
        decision: Decision | None = None,
        evidence: Evidence | None = None,
    ) -> Rollout:
        """Store a rollout's new progress with its routing, audit entry and event.

        Without a decision the last one is kept.
        """
        number = evidence.number if evidence else None
        step = RolloutStep(after.state, after.challenger_percent, journal.at, reason, number)
        changed = replace(
            rollout,
            progress=after,
            last_decision=decision or rollout.last_decision,
            reason=reason,
            ended_at=None if after.active else journal.at,
            history=(*rollout.history, step),
        )
        await records.change_rollout(changed, step)
        if after.state is not RolloutState.PROMOTED:
            await apply_routing(records, changed)
        await journal.write(
            action,
            changed.name,
            from_state=_label(rollout.progress),
            to_state=_label(after),
            reason=reason,
            evidence=name_of(evidence),
        )
        await records.emit(changed.changed(reason), journal.at)
        return changed

    async def _challenger_version(self, records: RolloutRecords, rollout: Rollout) -> ModelVersion:
        name = VersionName.numbered(rollout.model, rollout.challenger_version)
        return await find_version(records, name)

    async def _lock(self, records: RolloutRecords, name: RolloutName) -> Rollout:
        await lock_model(records, name.parent)
        return await find_rollout(records, name)

    def _journal(self, records: RolloutRecords, rollout: Rollout, by: str) -> Journal:
        return Journal(records, rollout.model, self._clock.now(), by)


def _label(progress: Progress) -> str:
    """Return the progress as audit entries show it: `CANARY 5 %`."""
    if progress.state is RolloutState.CANARY:
        return f"{progress.state} {progress.challenger_percent:g} %"
    return progress.state.value
