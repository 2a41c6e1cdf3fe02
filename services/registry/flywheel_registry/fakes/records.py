"""The records of the registry in memory, held to the same contract tests as those in PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TypeVar

from flywheel_registry.audit.chain import AuditEntry, AuditHead, entry_hash, genesis
from flywheel_registry.events.lifecycle import RolloutChanged, StageChanged
from flywheel_registry.evidence.evidence import Evidence
from flywheel_registry.fakes.lifetimes import MemoryLifetimes, without_golden_rows
from flywheel_registry.fakes.tables import MemoryTables, Numbered
from flywheel_registry.fakes.webhooks import MemoryWebhooks
from flywheel_registry.models.approval import Approval
from flywheel_registry.models.errors import (
    ConcurrentArtifactChange,
    ConcurrentChampionChange,
    ConcurrentStageChange,
)
from flywheel_registry.models.model import Model
from flywheel_registry.models.version import Artifact, FeatureUse, ModelVersion
from flywheel_registry.releases.release import Release
from flywheel_registry.rollouts.errors import ConcurrentRolloutStart
from flywheel_registry.rollouts.rollout import Rollout, RolloutStep
from flywheel_registry.rollouts.state_machine import Progress, RolloutState
from flywheel_registry.rollouts.verdict import Decision
from flywheel_registry.serving.history import ServingSpan
from flywheel_registry.serving.routing import Routing
from flywheel_registry.stages.transitions import Stage
from flywheel_registry.webhooks.payload import payload

Row = TypeVar("Row")


class MemoryRecords(MemoryLifetimes, MemoryWebhooks):
    """`RolloutRecords`, and with them all other records, on the tables that `tables` returns.

    These are a transaction's copy, or for reads the tables committed at the time of each call.
    """

    def __init__(self, tables: Callable[[], MemoryTables]) -> None:
        self._tables = tables

    @property
    def _data(self) -> MemoryTables:
        return self._tables()

    @property
    def answers(self) -> dict[tuple[str, str, str], tuple[bytes, bytes]]:
        """The answers of idempotent requests."""
        return self._data.answers

    async def lock(self, model: str) -> bool:
        return await self.model(model) is not None

    def _next_number(self, model: str, kind: str) -> int:
        number = self._data.last_numbers[model, kind] = self._data.last_numbers.get((model, kind), 0) + 1
        return number

    # -------------------------------------------------------------------------- models, versions, releases

    async def add_model(self, model: Model) -> bool:
        if model.name in self._data.models:
            return False
        self._data.models[model.name] = model
        return True

    async def model(self, name: str) -> Model | None:
        found = self._data.models.get(name)
        if found is None or ("model", name, 0) in self._data.deleted:
            return None
        routing = self._data.routing.get(name, Routing())
        champion = routing.champion
        version = self._data.releases[name, champion].version if champion is not None else None
        return replace(
            found, production_release=champion, production_version=version, variants=routing.variants
        )

    async def models(self, project: str, after: str, tags: Mapping[str, str], limit: int) -> list[Model]:
        names = sorted(
            m.name
            for m in self._data.models.values()
            if m.project == project and m.name > after and tags.items() <= m.tags.items()
            if ("model", m.name, 0) not in self._data.deleted
        )
        return [found for name in names[:limit] if (found := await self.model(name)) is not None]

    async def change_model(self, model: Model) -> None:
        old = self._data.models[model.name]
        self._data.models[model.name] = replace(
            old,
            description=model.description,
            owner=model.owner,
            tags=model.tags,
            gate_policy=model.gate_policy,
            rollout_policy=model.rollout_policy,
            revision=old.revision + 1,
        )

    async def add_version(self, version: ModelVersion) -> ModelVersion:
        added = replace(version, number=self._next_number(version.model, "version"))
        self._data.versions[added.model, added.number] = added
        return added

    async def version(self, model: str, number: int) -> ModelVersion | None:
        return None if self._hidden("version", model, number) else self._data.versions.get((model, number))

    async def versions(
        self,
        model: str,
        before: int,
        stage: Stage | None,
        tags: Mapping[str, str],
        limit: int,
        *,
        golden: bool = False,
    ) -> list[ModelVersion]:
        found = [
            v if golden else without_golden_rows(v)
            for v in _newest_first(self._data.versions, model, before)
            if stage in (None, v.stage) and tags.items() <= v.tags.items()
            if not self._hidden("version", model, v.number)
        ]
        return found[:limit]

    def _hidden(self, kind: str, model: str, number: int) -> bool:
        return (kind, model, number) in self._data.deleted

    async def feature_uses(self, prefix: str, after: tuple[str, int, str], limit: int) -> list[FeatureUse]:
        shown = [v for v in self._data.versions.values() if not self._hidden("version", v.model, v.number)]
        trained = {(v.model, v.number, v.feature_set) for v in shown}
        released = {
            (r.model, r.version, r.feature_set)
            for r in self._data.releases.values()
            if not self._hidden("release", r.model, r.number)
            if not self._hidden("version", r.model, r.version)
        }
        found = sorted(use for use in trained | released if use[2].startswith(prefix) and use > after)
        return [FeatureUse(m, n, self._data.versions[m, n].stage, name) for m, n, name in found[:limit]]

    async def champion(self, model: str) -> ModelVersion | None:
        mine = (v for (of, _), v in self._data.versions.items() if of == model)
        return next((v for v in mine if v.stage is Stage.PRODUCTION), None)

    async def production_versions(self, models: Sequence[str]) -> dict[str, ModelVersion | None]:
        found: dict[str, ModelVersion | None] = {}
        for name in models:
            if await self.model(name) is not None:
                listed = await self.versions(name, 2**31 - 1, Stage.PRODUCTION, {}, 1)
                found[name] = listed[0] if listed else None
        return found

    async def move_version(self, version: ModelVersion, to_stage: Stage, at: datetime, by: str) -> None:
        stored = self._data.versions.get((version.model, version.number))
        if stored is None or stored.stage is not version.stage:
            raise ConcurrentStageChange(
                f"{version.name} left stage {version.stage} meanwhile: read it again and retry."
            )
        champion = await self.champion(version.model)
        if to_stage is Stage.PRODUCTION and champion is not None and champion.number != version.number:
            raise ConcurrentChampionChange(
                "Another version became the champion meanwhile: read again and retry."
            )
        moved = replace(stored, stage=to_stage, promoted_at=at, promoted_by=by)
        self._data.versions[version.model, version.number] = moved

    async def mark_stored(self, model: str, version: int, artifact: str, sha256: str) -> None:
        stored = self._data.versions.get((model, version))
        declared = stored.artifacts if stored is not None else ()
        if stored is None or not any((a.name, a.sha256) == (artifact, sha256) for a in declared):
            raise ConcurrentArtifactChange(
                f"{model}/versions/{version} no longer declares {artifact} with this digest: read it again."
            )
        marked: list[Artifact] = [replace(a, stored=a.stored or a.name == artifact) for a in declared]
        self._data.versions[model, version] = replace(stored, artifacts=tuple(marked))

    async def digest_stored(self, sha256: str) -> bool:
        artifacts = (a for v in self._data.versions.values() for a in v.artifacts)
        return any(a.stored and a.sha256 == sha256 for a in artifacts)

    async def record_check(self, version: ModelVersion, problems: Sequence[str]) -> None:
        key = version.model, version.number
        self._data.versions[key] = replace(self._data.versions[key], check_problems=tuple(problems))

    async def has_dependents(self, version: ModelVersion) -> bool:
        return bool(await self.releases_of(version.model, version.number, 1)) or any(
            (a.model, a.version) == (version.model, version.number) for a in self._data.aliases.values()
        )

    async def add_release(self, release: Release) -> Release:
        added = replace(release, number=self._next_number(release.model, "release"))
        self._data.releases[added.model, added.number] = added
        return added

    async def release(self, model: str, number: int) -> Release | None:
        return None if self._hidden("release", model, number) else self._data.releases.get((model, number))

    async def releases(self, model: str, before: int, limit: int) -> list[Release]:
        mine = _newest_first(self._data.releases, model, before)
        return [r for r in mine if not self._hidden("release", model, r.number)][:limit]

    async def newest_release_of(self, model: str, version: int) -> Release | None:
        found = await self.releases_of(model, version, 1)
        return found[0] if found else None

    async def releases_of(self, model: str, version: int, limit: int) -> list[Release]:
        mine = await self.releases(model, 1 << 62, len(self._data.releases))
        return [r for r in mine if r.version == version][:limit]

    # ----------------------------------------------------------------------------- evidence, audit, events

    async def add_evidence(self, evidence: Evidence) -> Evidence:
        added = replace(evidence, number=self._next_number(evidence.model, "evidence"))
        self._data.evidence[added.model, added.number] = added
        return added

    async def evidence(self, model: str, number: int) -> Evidence | None:
        return self._data.evidence.get((model, number))

    async def newest_evidence_of(self, model: str, version: int, kind: str) -> Evidence | None:
        mine = _newest_first(self._data.evidence, model)
        return next((e for e in mine if (e.version, e.kind) == (version, kind)), None)

    async def add_audit(self, entry: AuditEntry) -> AuditEntry:
        before = _newest_first(self._data.audit, entry.model)
        sequence, previous = (before[0].sequence + 1, before[0].hash) if before else (1, genesis(entry.model))
        added = replace(entry, sequence=sequence, hash="")
        added = replace(added, hash=entry_hash(previous, added))
        self._data.audit[entry.model, sequence] = added
        return added

    async def audit(self, model: str, before: int, limit: int) -> list[AuditEntry]:
        return _newest_first(self._data.audit, model, before)[:limit]

    async def audit_head(self, model: str) -> AuditHead | None:
        if model not in self._data.models:
            return None
        entries = _newest_first(self._data.audit, model)
        return AuditHead(entries[0].sequence, entries[0].hash) if entries else AuditHead()

    async def last_evidence(self, model: str) -> int:
        return self._data.last_numbers.get((model, "evidence"), 0)

    async def add_approval(self, approval: Approval) -> None:
        self._data.approvals[approval.model, approval.version, approval.approver] = approval

    async def approvals(self, model: str, version: int) -> list[Approval]:
        mine = [a for key, a in self._data.approvals.items() if key[:2] == (model, version)]
        return sorted(mine, key=lambda a: (a.approved_at, a.approver))

    async def registrar(self, model: str, version_name: str) -> str:
        entries = reversed(_newest_first(self._data.audit, model))
        registered = (e.actor for e in entries if (e.subject, e.action) == (version_name, "REGISTER"))
        return next(registered, "")

    async def emit(self, event: StageChanged | RolloutChanged, at: datetime) -> None:
        self._data.events[len(self._data.events)] = event, at

    def send_events(self) -> None:
        """Give the events of this transaction the heads that it leaves."""
        for number in sorted(self._data.events.keys() - self._data.heads.keys()):
            event, at = self._data.events[number]
            entries = _newest_first(self._data.audit, event.model)
            head = AuditHead(entries[0].sequence, entries[0].hash) if entries else AuditHead()
            self._data.heads[number] = head
            self.add_deliveries(event.model, *payload(event, at, head))

    # -------------------------------------------------------------------------------- rollouts and serving

    async def add_rollout(self, rollout: Rollout) -> Rollout:
        if await self.active_rollout(rollout.model) is not None:
            raise ConcurrentRolloutStart("Another rollout started meanwhile: read again and retry.")
        number = self._next_number(rollout.model, "rollout")
        added = self._data.rollouts[rollout.model, number] = replace(rollout, number=number)
        return added

    async def rollout(self, model: str, number: int) -> Rollout | None:
        return self._data.rollouts.get((model, number))

    async def active_rollout(self, model: str) -> Rollout | None:
        mine = _newest_first(self._data.rollouts, model)
        return next((r for r in mine if r.ended_at is None), None)

    async def rollouts(self, model: str, before: int, limit: int) -> list[Rollout]:
        return _newest_first(self._data.rollouts, model, before)[:limit]

    async def paused_rollouts(self, at: datetime) -> list[Rollout]:
        stored = [self._data.rollouts[key] for key in sorted(self._data.rollouts)]
        paused = [rollout for rollout in stored if rollout.progress.state is RolloutState.PAUSED]
        return [rollout for rollout in paused if rollout.history[-1].entered_at <= at]

    async def undecided_rollouts(self) -> list[Rollout]:
        return [
            self._data.rollouts[key]
            for key in sorted(self._data.rollouts)
            if self._data.rollouts[key].ended_at is None
            and self._data.rollouts[key].progress.state is not RolloutState.PAUSED
        ]

    async def change_rollout(self, rollout: Rollout, step: RolloutStep) -> None:
        stored = self._data.rollouts[rollout.model, rollout.number]
        self._data.rollouts[rollout.model, rollout.number] = replace(
            stored,
            progress=rollout.progress,
            generation=rollout.generation,
            step_started_at=rollout.step_started_at,
            step_entered_at=rollout.step_entered_at,
            step_ran_seconds=rollout.step_ran_seconds,
            alerted_at=rollout.alerted_at,
            evidence_count=rollout.evidence_count,
            evidence_grew_at=rollout.evidence_grew_at,
            last_decision=rollout.last_decision,
            reason=rollout.reason,
            ended_at=rollout.ended_at,
            history=(*stored.history, step),
        )

    async def note_alert(self, rollout: Rollout) -> None:
        key = rollout.model, rollout.number
        self._data.rollouts[key] = replace(self._data.rollouts[key], alerted_at=rollout.alerted_at)

    async def note_hold(self, rollout: Rollout, progress: Progress) -> None:
        stored = self._data.rollouts[rollout.model, rollout.number]
        if stored.progress.step == progress.step and stored.ended_at is None:
            self._data.rollouts[rollout.model, rollout.number] = replace(
                stored,
                last_decision=Decision.HOLD,
                reason=rollout.reason,
                step_started_at=rollout.step_started_at,
                alerted_at=rollout.alerted_at,
                evidence_count=rollout.evidence_count,
                evidence_grew_at=rollout.evidence_grew_at,
            )

    async def routing(self, model: str) -> Routing:
        return self._data.routing.get(model, Routing())

    async def set_routing(self, model: str, routing: Routing) -> None:
        # A new object: the store notifies of every write.
        self._data.routing[model] = replace(routing)

    async def spans(self, model: str) -> list[ServingSpan]:
        return _newest_first(self._data.spans, model)[::-1]

    async def page_of_spans(self, model: str, before: int, limit: int) -> list[tuple[int, ServingSpan]]:
        mine = sorted((n for of, n in self._data.spans if of == model and n < before), reverse=True)
        return [(n, self._data.spans[model, n]) for n in mine[:limit]]

    async def begin_span(self, model: str, span: ServingSpan) -> None:
        mine = [n for of, n in self._data.spans if of == model]
        for number in mine:
            if self._data.spans[model, number].until is None:
                self._data.spans[model, number] = replace(self._data.spans[model, number], until=span.since)
        self._data.spans[model, max(mine, default=0) + 1] = span

    async def end_span(self, model: str, at: datetime) -> None:
        for key, span in self._data.spans.items():
            if key[0] == model and span.until is None:
                self._data.spans[key] = replace(span, until=at)

    async def span_at(self, model: str, at: datetime) -> ServingSpan | None:
        mine = _newest_first(self._data.spans, model)
        return next((s for s in mine if s.since <= at and (s.until is None or s.until > at)), None)


def _newest_first(rows: Mapping[Numbered, Row], model: str, before: int | None = None) -> list[Row]:
    mine = sorted((n for of, n in rows if of == model and (before is None or n < before)), reverse=True)
    return [rows[model, n] for n in mine]
