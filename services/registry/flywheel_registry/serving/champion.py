"""Replaces the champion of a model: stages, routing, serving history and audit in one transaction."""

from __future__ import annotations

from flywheel_registry.audit.journal import Journal, Proof
from flywheel_registry.events.lifecycle import StageChanged
from flywheel_registry.models.stage_changes import change_stage
from flywheel_registry.models.version import ModelVersion
from flywheel_registry.releases.names import ReleaseName
from flywheel_registry.releases.release import Release
from flywheel_registry.serving.history import ServingSpan
from flywheel_registry.serving.ports import ServingRecords
from flywheel_registry.serving.routing import champion_only
from flywheel_registry.stages.transitions import Stage


async def replace_champion(
    records: ServingRecords,
    journal: Journal,
    release: Release,
    version: ModelVersion,
    reason: str,
    *,
    evidence: Proof | None = None,
    by_rollback: bool = False,
) -> ModelVersion:
    """Serve `release` (of `version`) to all requests and archive the old champion; return the version.

    A version that is already in PRODUCTION keeps its stage and only the release changes: this too is an audit
    entry of the version and an event, from PRODUCTION to PRODUCTION. The transaction must hold the model's
    lock.
    """
    model, action = journal.model, "ROLLBACK" if by_rollback else "PROMOTE"
    champion = await records.champion(model)
    if champion is None or champion.number != version.number:
        # The database allows one version in PRODUCTION at any time, so the old champion leaves first.
        if champion is not None:
            why = f"replaced by {version.name}: {reason}"
            await change_stage(
                records, journal, champion, Stage.ARCHIVED, why, action="ARCHIVE", evidence=evidence
            )
        version = await change_stage(
            records,
            journal,
            version,
            Stage.PRODUCTION,
            reason,
            action=action,
            evidence=evidence,
            release=release.number,
        )
    else:
        stage = version.stage
        await journal.write(
            action, version.name, from_state=stage, to_state=stage, reason=reason, evidence=evidence
        )
        await records.emit(
            StageChanged(model, version.number, stage, stage, journal.actor, reason, release.number),
            journal.at,
        )
    routing = await records.routing(model)
    await records.set_routing(model, champion_only(routing, release.number))
    await records.begin_span(
        model, ServingSpan(release.number, version.number, journal.at, None, reason, by_rollback)
    )
    await journal.write(
        "SERVE",
        release.name,
        from_state=ReleaseName.of(model, routing.champion),
        to_state=release.name,
        reason=reason,
        evidence=evidence,
    )
    return version
