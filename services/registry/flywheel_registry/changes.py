"""What one transaction does to a model's stages and routing, always with its audit line and its event.

Every method needs the model's lock. The order inside a coronation matters: the old champion leaves PRODUCTION before the
new one enters, because the database allows one at any moment, not just at commit.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from flywheel_registry import stages
from flywheel_registry.audit import AuditEntry
from flywheel_registry.ports import Records
from flywheel_registry.resources import Evidence, ModelVersion, Release, Rollout, RolloutChanged, StageChanged
from flywheel_registry.serving import Routing, Span, crowned, following
from flywheel_registry.stages import Stage


class Changes:
    """One actor's changes to one model at one moment (`at`, wall time)."""

    def __init__(self, records: Records, model: str, at: datetime, by: str) -> None:
        self._records = records
        self._model = model
        self.at = at
        self.by = by

    async def note(
        self,
        action: str,
        subject: str,
        *,
        from_state: str = "",
        to_state: str = "",
        reason: str = "",
        evidence: Evidence | None = None,
    ) -> None:
        """Appends to the audit."""
        proof = evidence.name if evidence is not None else ""
        await self._records.add_audit(
            AuditEntry(
                self._model,
                0,
                self.at,
                self.by,
                action,
                subject,
                str(from_state),
                str(to_state),
                reason,
                proof,
            )
        )

    async def move(
        self,
        version: ModelVersion,
        to_stage: Stage,
        reason: str,
        *,
        action: str = "PROMOTE",
        evidence: Evidence | None = None,
        release: int | None = None,
    ) -> ModelVersion:
        """Moves a version by one legal edge. Raises IllegalTransition."""
        stages.check(version.stage, to_stage, version.name)
        await self._records.move_version(version, to_stage, self.at, self.by)
        await self.note(
            action,
            version.name,
            from_state=version.stage,
            to_state=to_stage,
            reason=reason,
            evidence=evidence,
        )
        await self._records.emit(
            StageChanged(version.model, version.number, version.stage, to_stage, self.by, reason, release),
            self.at,
        )
        return replace(version, stage=to_stage, promoted_at=self.at, promoted_by=self.by)

    async def crown(
        self,
        release: Release,
        version: ModelVersion,
        reason: str,
        *,
        evidence: Evidence | None = None,
        by_rollback: bool = False,
    ) -> ModelVersion:
        """`release` (of `version`) serves everybody from now on; the old champion is ARCHIVED. A version that is
        PRODUCTION already keeps its stage: only the release changes."""
        action = "ROLLBACK" if by_rollback else "PROMOTE"
        champion = await self._records.champion(self._model)
        if champion is None or champion.number != version.number:
            if champion is not None:
                why = f"replaced by {version.name}: {reason}"
                await self.move(champion, Stage.ARCHIVED, why, action="ARCHIVE", evidence=evidence)
            version = await self.move(
                version, Stage.PRODUCTION, reason, action=action, evidence=evidence, release=release.number
            )
        routing = await self._records.routing(self._model)
        before = f"{self._model}/releases/{routing.champion}" if routing.champion is not None else ""
        await self._records.set_routing(self._model, crowned(routing, release.number))
        await self._records.begin_span(
            self._model, Span(release.number, version.number, self.at, None, reason, by_rollback)
        )
        await self.note(
            "SERVE", release.name, from_state=before, to_state=release.name, reason=reason, evidence=evidence
        )
        return version

    async def route(self, rollout: Rollout) -> Routing:
        """Sends the routing that a rollout's state asks for (not for PROMOTED: that is a coronation)."""
        routing = await self._records.routing(self._model)
        wanted = following(routing, rollout.number, rollout.challenger, rollout.progress, rollout.policy)
        if wanted != routing:
            await self._records.set_routing(self._model, wanted)
        return wanted

    async def announce(self, rollout: Rollout, reason: str) -> None:
        """Emits rollout.changed."""
        await self._records.emit(RolloutChanged(rollout, reason), self.at)
