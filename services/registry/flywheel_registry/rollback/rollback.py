"""Rolls a model back to a release that served before, in one transaction."""

from __future__ import annotations

from flywheel_common.clock import Clock
from flywheel_registry.audit.journal import Journal
from flywheel_registry.models.lookups import find_version, lock_model
from flywheel_registry.models.names import VersionName
from flywheel_registry.releases.errors import RejectedVersion, WrongModel
from flywheel_registry.releases.lookups import find_release
from flywheel_registry.releases.names import ReleaseName
from flywheel_registry.rollback.target import rollback_target
from flywheel_registry.rollouts.lifecycle import RolloutLifecycle
from flywheel_registry.rollouts.ports import RolloutRecords
from flywheel_registry.serving.champion import replace_champion
from flywheel_registry.serving.warm import usable
from flywheel_registry.stages.transitions import Stage


class Rollbacks:
    """Rolls models back."""

    def __init__(self, clock: Clock, lifecycle: RolloutLifecycle) -> None:
        self._clock = clock
        self._lifecycle = lifecycle

    async def roll_back(
        self, records: RolloutRecords, model: str, to_release: ReleaseName | None, reason: str, by: str
    ) -> None:
        """Serve the release that served before, or `to_release`, and end an active rollout.

        While a challenger answers callers and no release is named, the challenger is what is rolled back: the
        champion serves alone again. Raises UnknownModel, WrongModel, NothingToRollBackTo, RejectedVersion.
        """
        if to_release is not None and to_release.parent != model:
            raise WrongModel(f"{to_release} is not a release of {model}.")
        await lock_model(records, model)
        journal = Journal(records, model, self._clock.now(), by)
        why = reason or "rollback"
        active = await records.active_rollout(model)
        if active is not None and to_release is None and active.progress.challenger_percent > 0:
            await self._lifecycle.roll_back(records, journal, active, why)
            return
        spans = await records.spans(model)
        served = {span.release for span in spans}
        unusable = {number for number in served if not await usable(records, model, number)}
        target = rollback_target(spans, to_release.number if to_release else None, unusable=unusable)
        release = await find_release(records, ReleaseName.numbered(model, target))
        version = await find_version(records, VersionName.numbered(model, release.version))
        if version.stage is Stage.REJECTED:
            raise RejectedVersion(
                f"{version.name} was REJECTED after it served: name another release in to_release."
            )
        if active is not None:
            await self._lifecycle.end(
                records, journal, active, f"ended by a rollback to {release.name}: {why}"
            )
        await replace_champion(records, journal, release, version, why, by_rollback=True)
