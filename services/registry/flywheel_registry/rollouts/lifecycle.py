"""Changes a rollout after its start: by a verdict on its evidence, or by an operator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from flywheel_common.clock import Clock
from flywheel_registry.audit.journal import Journal
from flywheel_registry.audit.reasons import require_reason
from flywheel_registry.evidence.evidence import Evidence
from flywheel_registry.models.lookups import find_version, lock_model
from flywheel_registry.models.names import VersionName
from flywheel_registry.models.stage_changes import change_stage
from flywheel_registry.models.version import ModelVersion
from flywheel_registry.policies.snapshot import policy_snapshot
from flywheel_registry.releases.lookups import find_release
from flywheel_registry.releases.names import ReleaseName
from flywheel_registry.rollouts import state_machine
from flywheel_registry.rollouts.comparison import Comparison
from flywheel_registry.rollouts.errors import NotAnExperiment
from flywheel_registry.rollouts.loading import require_loaded
from flywheel_registry.rollouts.lookups import find_rollout
from flywheel_registry.rollouts.names import RolloutName
from flywheel_registry.rollouts.ports import RolloutRecords
from flywheel_registry.rollouts.rollout import Rollout, RolloutStep
from flywheel_registry.rollouts.routing import apply_routing
from flywheel_registry.rollouts.stalls import with_evidence
from flywheel_registry.rollouts.state_machine import Progress, RolloutState
from flywheel_registry.rollouts.verdict import Decision, Verdict
from flywheel_registry.serving.champion import replace_champion
from flywheel_registry.serving.gateways import Gateway
from flywheel_registry.stages.transitions import Stage

EVIDENCE_KINDS = {
    RolloutState.PENDING_LOAD: "LOAD",
    RolloutState.SHADOW: "SHADOW",
    RolloutState.CANARY: "CANARY",
}
"""State → kind of the evidence that a verdict on it is stored as."""
EVIDENCE_PRODUCERS = {
    RolloutState.PENDING_LOAD: "gateways",
    RolloutState.SHADOW: "monitor",
    RolloutState.CANARY: "monitor",
}
"""State → the services whose numbers a verdict on it rests on."""


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
        if verdict.decision is Decision.HOLD:
            held = replace(
                judged, reason=verdict.reason, step_started_at=started, last_decision=Decision.HOLD
            )
            if comparison is not None:
                held = with_evidence(held, comparison.challenger.predictions, self._clock.now())
            if held != judged:
                await records.note_hold(held, judged.progress)
            return held
        await lock_model(records, judged.model)
        rollout = await records.rollout(judged.model, judged.number)
        if rollout is None or rollout.progress != judged.progress:
            return None
        journal = Journal(records, judged.model, self._clock.now(), by)
        champion = await records.champion(judged.model)
        evidence = await records.add_evidence(
            Evidence(
                model=judged.model,
                kind=EVIDENCE_KINDS[judged.progress.state],
                version=judged.challenger_version,
                values=verdict.values,
                findings=verdict.findings,
                passed=verdict.decision is Decision.ADVANCE,
                created_at=journal.at,
                producer=EVIDENCE_PRODUCERS[judged.progress.state],
                champion=champion.number if champion else None,
                rollout=judged.number,
                step=judged.progress.step,
                policy=policy_snapshot(judged.policy),
            )
        )
        if evidence.passed:
            return await self._advance(records, journal, rollout, reason=verdict.reason, evidence=evidence)
        return await self._withdraw(records, journal, rollout, verdict, evidence)

    async def alert(self, records: RolloutRecords, judged: Rollout, reason: str) -> None:
        """Report a rollout that does not come on by an event with `alert`.

        Nothing happens when it has changed, or was reported, since it was judged.
        """
        await lock_model(records, judged.model)
        rollout = await records.rollout(judged.model, judged.number)
        if rollout is None or (rollout.progress, rollout.alerted_at) != (judged.progress, judged.alerted_at):
            return
        now = self._clock.now()
        await records.note_alert(replace(rollout, alerted_at=now))
        await records.emit(rollout.changed(reason, alert=True), now)

    async def _advance(
        self,
        records: RolloutRecords,
        journal: Journal,
        rollout: Rollout,
        *,
        reason: str,
        evidence: Evidence | None = None,
        action: str = "ADVANCE",
    ) -> Rollout:
        """Move to the next step. A version that begins to answer callers becomes CANDIDATE."""
        after = state_machine.advance(
            rollout.progress, rollout.policy, has_champion=rollout.champion is not None
        )
        if after.state is not RolloutState.SHADOW:
            version = await self._challenger_version(records, rollout)
            if version.stage is Stage.STAGING:
                version = await change_stage(
                    records, journal, version, Stage.CANDIDATE, reason, evidence=evidence
                )
            if after.state is RolloutState.PROMOTED:
                release = await find_release(records, ReleaseName.numbered(rollout.model, rollout.challenger))
                await replace_champion(records, journal, release, version, reason, evidence=evidence)
        return await self._change(
            records,
            journal,
            rollout,
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
        """End the rollout without promotion.

        Only a verdict that rejects, because a quality bound was crossed, rejects the challenger's version;
        otherwise it keeps its stage and may try again.
        """
        expired = verdict.decision is Decision.EXPIRE
        after = (state_machine.expire if expired else state_machine.withdraw)(rollout.progress)
        changed = await self._change(
            records,
            journal,
            rollout,
            after,
            action=verdict.decision.value,
            reason=verdict.reason,
            decision=verdict.decision,
            evidence=evidence,
            alert=True,
        )
        version = await self._challenger_version(records, rollout)
        if verdict.rejects and version.stage in (Stage.STAGING, Stage.CANDIDATE):
            await change_stage(
                records,
                journal,
                version,
                Stage.REJECTED,
                verdict.reason,
                action="REJECT",
                evidence=evidence,
            )
        return changed

    # ------------------------------------------------------------------------------------------ by operators

    async def pause(self, records: RolloutRecords, name: RolloutName, reason: str, by: str) -> Rollout:
        """Stop deciding and the clock of the step; the routing stays. Raises RolloutEnded."""
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

    async def conclude(
        self, records: RolloutRecords, name: RolloutName, decision: Decision, reason: str, by: str
    ) -> Rollout:
        """End an A/B test by the verdict of its experiment: ADVANCE promotes, ROLL_BACK ends it.

        The challenger's version keeps its stage after ROLL_BACK. Raises RolloutEnded, NotAnExperiment,
        ReasonRequired.
        """
        require_reason(reason, "The verdict of an A/B test")
        rollout = await self._lock(records, name)
        running = state_machine.running_state(rollout.progress)
        if not rollout.policy.until_verdict or running is not RolloutState.CANARY:
            raise NotAnExperiment(
                f"{name} is no A/B test that answers callers: its steps decide, or it has not begun.",
                state=rollout.progress.state,
            )
        journal = self._journal(records, rollout, by)
        if decision is Decision.ADVANCE:
            return await self._advance(records, journal, rollout, reason=reason, action="SHIP")
        after = state_machine.withdraw(rollout.progress)
        return await self._change(
            records, journal, rollout, after, action="ROLL_BACK", reason=reason, decision=Decision.ROLL_BACK
        )

    async def skip(
        self,
        records: RolloutRecords,
        name: RolloutName,
        gateways: Sequence[Gateway],
        reason: str,
        by: str,
    ) -> Rollout:
        """Move to the next step without evidence. The next step begins with its own clock and evidence.

        `gateways` are those of the last `GATEWAY_SECONDS`: PENDING_LOAD is only skipped when one of them has
        loaded the challenger. Raises RolloutEnded, NotLoaded, ReasonRequired.
        """
        require_reason(reason, "Skipping a step")
        rollout = await self._lock(records, name)
        if state_machine.running_state(rollout.progress) is RolloutState.PENDING_LOAD:
            require_loaded(gateways, rollout.model, rollout.challenger)
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
        alert: bool = False,
    ) -> Rollout:
        """Store a rollout's new progress with its routing, audit entry and event.

        Without a decision the last one is kept. A new step begins with a clock and evidence of its own; a
        pause and its end belong to the step.
        """
        number = evidence.number if evidence else None
        step = RolloutStep(after.state, after.challenger_percent, journal.at, reason, number)
        same_step = action in ("PAUSE", "RESUME")
        changed = replace(
            rollout,
            progress=after,
            step_entered_at=journal.at,
            step_ran_seconds=rollout.step_seconds(journal.at) if same_step else 0.0,
            step_started_at=rollout.step_started_at if same_step or not after.active else None,
            alerted_at=None,
            evidence_count=0,
            evidence_grew_at=None,
            last_decision=decision or rollout.last_decision,
            reason=reason,
            ended_at=None if after.active else journal.at,
            history=(*rollout.history, step),
        )
        changed = replace(changed, generation=await apply_routing(records, changed))
        await records.change_rollout(changed, step)
        await journal.write(
            action,
            changed.name,
            from_state=_label(rollout.progress),
            to_state=_label(after),
            reason=reason,
            evidence=evidence,
        )
        await records.emit(changed.changed(reason, alert=alert), journal.at)
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
