"""Changes the stage of a version, with its audit entry and event."""

from __future__ import annotations

from dataclasses import replace

from flywheel_registry.audit.journal import Journal, Proof
from flywheel_registry.events.lifecycle import StageChanged
from flywheel_registry.models.ports import ModelRecords
from flywheel_registry.models.version import ModelVersion
from flywheel_registry.stages.transitions import Stage, check_transition


async def change_stage(
    records: ModelRecords,
    journal: Journal,
    version: ModelVersion,
    to_stage: Stage,
    reason: str,
    *,
    action: str = "PROMOTE",
    evidence: Proof | None = None,
    release: int | None = None,
) -> ModelVersion:
    """Move a version to `to_stage` and return it. The transaction must hold the model's lock.

    `action` is the verb of the audit entry, `evidence` what the change was decided on, `release` the release
    that the model serves through this change. Raises IllegalTransition.
    """
    check_transition(version.stage, to_stage, version.name)
    await records.move_version(version, to_stage, journal.at, journal.actor)
    await journal.write(
        action, version.name, from_state=version.stage, to_state=to_stage, reason=reason, evidence=evidence
    )
    await records.emit(
        StageChanged(version.model, version.number, version.stage, to_stage, journal.actor, reason, release),
        journal.at,
    )
    return replace(version, stage=to_stage, promoted_at=journal.at, promoted_by=journal.actor)
