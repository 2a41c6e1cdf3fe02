"""Moving a version up by its gates, or out for ever."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from flywheel_common.clock import Clock
from flywheel_common.errors import FailedPrecondition, InvalidArgument
from flywheel_registry import stages
from flywheel_registry.absent import find_model, find_version, lock_model, require_reason
from flywheel_registry.catalog import require_ready
from flywheel_registry.changes import Changes
from flywheel_registry.gates import GateResult, evaluate_offline
from flywheel_registry.names import VersionName
from flywheel_registry.ports import Records
from flywheel_registry.resources import Evidence, ModelVersion, Release
from flywheel_registry.stages import Stage

NO_CHAMPION = "no champion to compare with: decided on the offline gate alone"


class RolloutActive(FailedPrecondition):
    reason = "ROLLOUT_ACTIVE"


@dataclass(frozen=True, slots=True)
class Promotion:
    """The version after the attempt; `passed`: its gates did (an override does not change that)."""

    version: ModelVersion
    passed: bool
    evidence: Evidence


class Promotions:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    async def promote(
        self,
        records: Records,
        name: VersionName,
        to_stage: Stage | None,
        reason: str,
        by: str,
        *,
        override: bool,
        added: Mapping[str, float],
    ) -> Promotion:
        """Evaluates the gate of every stage up to `to_stage` (None: the next) and moves the version if all pass or
        `override` is set. A failed gate is an answer, kept as evidence. `added` are numbers beside the stored metrics.
        Raises IllegalTransition, FailedPrecondition ARTIFACTS_PENDING, ROLLOUT_ACTIVE, NO_RELEASE."""
        if override:
            require_reason(reason, "An override")
        await lock_model(records, name.parent)
        version = await find_version(records, name)
        path = stages.path_up(version.stage, to_stage, str(name))
        require_ready(version)
        champion = await records.champion(name.parent)
        release = (
            await self._release_to_serve(records, version, champion, override)
            if Stage.PRODUCTION in path
            else None
        )
        await self._refuse_during_rollout(records, version, path)

        result = await self._evaluate(records, version, champion, path, _merged(version.metrics, added))
        kind = {Stage.STAGING: "OFFLINE", Stage.CANDIDATE: "SHADOW", Stage.PRODUCTION: "CANARY"}[path[0]]
        now = self._clock.now()
        evidence = await records.add_evidence(
            Evidence(
                name.parent,
                kind,
                version.number,
                result.values,
                result.findings,
                result.passed,
                created_at=now,
            )
        )
        changes = Changes(records, name.parent, now, by)
        if not result.passed and not override:
            failed = "; ".join(line for line in result.findings if line.startswith("FAILED"))
            await changes.note(
                "GATE_FAILED",
                version.name,
                from_state=version.stage,
                to_state=version.stage,
                reason=failed,
                evidence=evidence,
            )
            return Promotion(version, False, evidence)
        why = reason or f"{kind.lower()} gate passed"
        if not result.passed:
            why = f"override: {reason}"
        elif champion is None and Stage.PRODUCTION in path:
            why = f"{why} ({NO_CHAMPION})"
        action = "PROMOTE" if result.passed else "OVERRIDE"
        for stage in path:
            if stage is Stage.PRODUCTION and release is not None:
                version = await changes.crown(release, version, why, evidence=evidence)
            else:
                version = await changes.move(version, stage, why, action=action, evidence=evidence)
        return Promotion(version, result.passed, evidence)

    async def _release_to_serve(
        self, records: Records, version: ModelVersion, champion: ModelVersion | None, override: bool
    ) -> Release:
        if champion is not None and not override:
            hint = f"{champion.name} is the champion: replace it by StartRollout, or promote with override, a reason and the role."
            raise stages.illegal(version.stage, Stage.PRODUCTION, version.name, why=hint)
        release = await records.newest_release_of(version.model, version.number)
        if release is None:
            raise FailedPrecondition(
                f"{version.name} has no release, and releases are what serves: create one first.",
                reason="NO_RELEASE",
            )
        return release

    async def _refuse_during_rollout(
        self, records: Records, version: ModelVersion, path: tuple[Stage, ...]
    ) -> None:
        active = await records.active_rollout(version.model)
        if active is not None and (active.challenger_version == version.number or Stage.PRODUCTION in path):
            raise RolloutActive(
                f"{active.name} is active and decides: skip its step, abort it, or wait.", rollout=active.name
            )

    async def _evaluate(
        self,
        records: Records,
        version: ModelVersion,
        champion: ModelVersion | None,
        path: tuple[Stage, ...],
        metrics: Mapping[str, float],
    ) -> GateResult:
        model = await find_model(records, version.model)
        passed = True
        findings: list[str] = []
        values: dict[str, float] = {}
        for stage in path:
            if stage is Stage.STAGING:
                offline = evaluate_offline(model.gate_policy, metrics, champion.metrics if champion else None)
                passed, findings, values = (
                    passed and offline.passed,
                    [*findings, *offline.findings],
                    {**values, **offline.values},
                )
            elif champion is None:
                findings.append(f"passed: {stage} without shadow or canary, {NO_CHAMPION}")
            elif stage is Stage.CANDIDATE:
                proof = await records.newest_evidence_of(version.model, version.number, "SHADOW")
                ok = proof is not None and proof.passed
                said = (
                    f"{proof.name} says so"
                    if proof is not None and ok
                    else "no passed shadow evidence: StartRollout gathers it"
                )
                findings.append(
                    f"{'passed' if ok else 'FAILED'}: shadow comparison with the champion, {said}"
                )
                passed = passed and ok
            else:
                findings.append(
                    "FAILED: canary comparison with the champion, no passed canary evidence: StartRollout gathers it"
                )
                passed = False
        return GateResult(passed, tuple(findings), values)

    async def reject(self, records: Records, name: VersionName, reason: str, by: str) -> ModelVersion:
        """For ever. Raises IllegalTransition for the champion, ROLLOUT_ACTIVE for a challenger at work."""
        require_reason(reason, "A rejection")
        await lock_model(records, name.parent)
        version = await find_version(records, name)
        stages.check(version.stage, Stage.REJECTED, str(name))
        await self._refuse_during_rollout(records, version, ())
        return await Changes(records, name.parent, self._clock.now(), by).move(
            version, Stage.REJECTED, reason, action="REJECT"
        )


def _merged(stored: Mapping[str, float], added: Mapping[str, float]) -> dict[str, float]:
    """Stored metrics and added ones. Raises InvalidArgument EVIDENCE_CONFLICT where they disagree: what was registered
    with the version cannot be talked away at its gate."""
    for name, value in added.items():
        if not math.isfinite(value):
            raise InvalidArgument(
                f"evidence.values[{name!r}] is {value}: evidence is finite.", reason="INVALID_METRIC"
            )
        if name in stored and stored[name] != value:
            raise InvalidArgument(
                f"evidence.values[{name!r}] is {value:g}, but the version was registered with {stored[name]:g}: leave it out or name it otherwise.",
                reason="EVIDENCE_CONFLICT",
            )
    return {**added, **stored}
