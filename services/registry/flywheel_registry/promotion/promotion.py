"""Promotes a version through the gates of its next stages, or rejects it.

The roles that may promote, and those that may override a gate, are in `permissions`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from flywheel_common.clock import Clock
from flywheel_registry.audit.journal import Journal
from flywheel_registry.audit.reasons import require_reason
from flywheel_registry.evidence.evidence import Evidence
from flywheel_registry.evidence.experiment_verdict import ExperimentVerdict
from flywheel_registry.gates.measured import newest_evaluation, with_evaluation
from flywheel_registry.gates.path import EVIDENCE_KINDS, evaluate_path
from flywheel_registry.models.errors import InvalidMetric
from flywheel_registry.models.lookups import find_model, find_version, lock_model
from flywheel_registry.models.names import VersionName
from flywheel_registry.models.stage_changes import change_stage
from flywheel_registry.models.version import ModelVersion, require_ready
from flywheel_registry.policies.snapshot import policy_snapshot
from flywheel_registry.promotion.errors import NoRelease
from flywheel_registry.releases.release import Release
from flywheel_registry.rollouts.errors import RolloutActive
from flywheel_registry.rollouts.ports import RolloutRecords
from flywheel_registry.serving.champion import replace_champion
from flywheel_registry.serving.variants import refuse_variant
from flywheel_registry.stages.transitions import (
    Stage,
    check_transition,
    illegal_transition,
    promotion_path,
)


@dataclass(frozen=True, slots=True)
class PromotionResult:
    """The version after a promotion attempt. `passed` is the result of the gates, also with an override."""

    version: ModelVersion
    passed: bool
    evidence: Evidence


class Promotions:
    """Promotes and rejects versions."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    async def promote(
        self,
        records: RolloutRecords,
        name: VersionName,
        to_stage: Stage | None,
        reason: str,
        by: str,
        *,
        override: bool,
        check_path: Callable[[Sequence[Stage]], None],
        added: Mapping[str, float],
        experiments: tuple[ExperimentVerdict, ...] | None = (),
    ) -> PromotionResult:
        """Evaluate the gates up to `to_stage` (None: the next stage) and move the version if they pass.

        With `override` it moves also when they fail. A failed gate is a result, not an error, and is stored
        as evidence. `check_path` raises if the caller may not move a version through these stages. `added`
        are values that a service measured; they outrank the metrics that the version was registered with, and
        those of the newest evaluation outrank both. `experiments`: see `Candidate`.
        Raises IllegalTransition, ArtifactsPending, RolloutActive, NoRelease, InvalidMetric, what `check_path`
        raises, and ReasonRequired for an override without a reason.
        """
        if override:
            require_reason(reason, "An override")
        await lock_model(records, name.parent)
        version = await find_version(records, name)
        path = promotion_path(version.stage, to_stage, str(name))
        check_path(path)
        require_ready(version)
        champion = await records.champion(name.parent)
        release = None
        if Stage.PRODUCTION in path:
            release = await _release_to_serve(records, version, override=override)
        await _refuse_during_rollout(records, version, path)

        model = await find_model(records, name.parent)
        metrics = _merge_metrics(version.metrics, added)
        evaluation = await newest_evaluation(records, version)
        metrics = with_evaluation(metrics, evaluation, champion.number if champion else None)
        result = await evaluate_path(records, version, champion, path, metrics, experiments)
        kind = EVIDENCE_KINDS[path[0]]
        journal = Journal(records, name.parent, self._clock.now(), by)
        evidence = await records.add_evidence(
            Evidence(
                model=name.parent,
                kind=kind,
                version=version.number,
                values=result.values,
                findings=(*result.findings, *_outranked(version.metrics, metrics, by, evaluation)),
                passed=result.passed,
                created_at=journal.at,
                producer=by,
                champion=champion.number if champion else None,
                policy=policy_snapshot(model.gate_policy),
            )
        )
        if not result.passed and not override:
            await journal.write(
                "GATE_FAILED",
                version.name,
                from_state=version.stage,
                to_state=version.stage,
                reason="; ".join(line for line in result.findings if line.startswith("FAILED")),
                evidence=evidence,
            )
            return PromotionResult(version, False, evidence)
        why = reason or f"{kind.lower()} gate passed"
        if not result.passed:
            why = f"override: {reason}"
        action = "PROMOTE" if result.passed else "OVERRIDE"
        for stage in path:
            if stage is Stage.PRODUCTION and release is not None:
                version = await replace_champion(records, journal, release, version, why, evidence=evidence)
            else:
                version = await change_stage(
                    records, journal, version, stage, why, action=action, evidence=evidence
                )
        return PromotionResult(version, result.passed, evidence)

    async def reject(self, records: RolloutRecords, name: VersionName, reason: str, by: str) -> ModelVersion:
        """Move a version to REJECTED, which is final.

        Raises ReasonRequired, IllegalTransition for the champion, RolloutActive for the challenger of a
        rollout, and VariantNotAllowed for a variant.
        """
        require_reason(reason, "A rejection")
        await lock_model(records, name.parent)
        version = await find_version(records, name)
        check_transition(version.stage, Stage.REJECTED, str(name))
        await _refuse_during_rollout(records, version, ())
        await refuse_variant(records, version)
        journal = Journal(records, name.parent, self._clock.now(), by)
        if version.stage is Stage.ARCHIVED:
            # Equal routing, so the same generation: gateways hear that the version is no longer kept warm.
            await records.set_routing(name.parent, await records.routing(name.parent))
        return await change_stage(records, journal, version, Stage.REJECTED, reason, action="REJECT")


async def _release_to_serve(records: RolloutRecords, version: ModelVersion, *, override: bool) -> Release:
    """Return the version's newest release. Raises NoRelease, IllegalTransition without an override."""
    if not override:
        hint = (
            "A release serves by StartRollout, which waits until the gateways have loaded it. Promote with "
            "`override`, a reason and a role that may override to do without."
        )
        raise illegal_transition(version.stage, Stage.PRODUCTION, version.name, hint=hint)
    release = await records.newest_release_of(version.model, version.number)
    if release is None:
        raise NoRelease(f"{version.name} has no release, and gateways serve releases: create one first.")
    return release


async def _refuse_during_rollout(
    records: RolloutRecords, version: ModelVersion, path: tuple[Stage, ...]
) -> None:
    """Raise RolloutActive when an active rollout decides about this version, or about the champion."""
    active = await records.active_rollout(version.model)
    if active is not None and (active.challenger_version == version.number or Stage.PRODUCTION in path):
        raise RolloutActive(
            f"{active.name} is active and decides: skip its step, abort it, or wait.", rollout=active.name
        )


def _merge_metrics(stored: Mapping[str, float], added: Mapping[str, float]) -> dict[str, float]:
    """Return stored and added metrics; where they differ, what a service measured. Raises InvalidMetric."""
    for name, value in added.items():
        if not math.isfinite(value):
            raise InvalidMetric(f"evidence.values[{name!r}] is {value}: send a finite value.")
    return {**stored, **added}


def _outranked(
    stored: Mapping[str, float], used: Mapping[str, float], by: str, evaluation: Evidence | None
) -> list[str]:
    """Return one line for each registered metric that a measured value outranks, and one that names the
    evaluation."""
    measured = dict[str, float](evaluation.values) if evaluation else {}
    lines = [f"passed: metrics of {evaluation.name}, measured by {evaluation.producer}"] if evaluation else []
    for name, value in sorted(used.items()):
        if name in stored and stored[name] != value:
            source = evaluation.name if evaluation and measured.get(name) == value else by
            counts = f"{value:.6g} as {source} measured it counts"
            lines.append(f"passed: {name}: {counts}, {stored[name]:.6g} was registered")
    return lines
