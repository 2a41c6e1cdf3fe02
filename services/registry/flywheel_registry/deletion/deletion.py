"""Deletes and restores models, versions and releases; what something refers to is not deleted.

What is deleted is hidden at once and can be restored until its artifacts are collected (`collection`). Audit
and evidence stay for ever.
"""

from __future__ import annotations

from flywheel_common.clock import Clock
from flywheel_registry.audit.journal import Journal
from flywheel_registry.deletion.errors import ModelInUse, NotRestorable, ReleaseInUse
from flywheel_registry.models.errors import VersionInUse
from flywheel_registry.models.lookups import find_version, lock_model
from flywheel_registry.models.model import Model
from flywheel_registry.models.names import ModelName, VersionName
from flywheel_registry.models.stage_changes import change_stage
from flywheel_registry.models.version import ModelVersion
from flywheel_registry.releases.lookups import find_release
from flywheel_registry.releases.names import ReleaseName
from flywheel_registry.releases.release import Release
from flywheel_registry.rollouts.ports import RolloutRecords
from flywheel_registry.serving.routing import Routing
from flywheel_registry.stages.transitions import Stage


class Deletion:
    """Deletes and restores models, versions and releases."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    async def delete_version(self, records: RolloutRecords, name: VersionName, reason: str, by: str) -> None:
        """Delete a version in stage NONE or REJECTED to which no release and no alias refers.

        Raises UnknownModel, UnknownModelVersion, VersionInUse.
        """
        await lock_model(records, name.parent)
        version = await find_version(records, name)
        if version.stage not in (Stage.NONE, Stage.REJECTED):
            raise VersionInUse(f"{name} is in stage {version.stage}: only NONE and REJECTED can be deleted.")
        if await records.has_dependents(version):
            raise VersionInUse(f"A release or an alias refers to {name}, which therefore stays.")
        journal = Journal(records, name.parent, self._clock.now(), by)
        await records.delete_version(version, journal.at)
        await journal.write("DELETE", version.name, from_state=version.stage, reason=reason)

    async def restore_version(
        self, records: RolloutRecords, name: VersionName, reason: str, by: str
    ) -> ModelVersion:
        """Restore a deleted version. Raises UnknownModel, NotRestorable."""
        await lock_model(records, name.parent)
        if not await records.restore_version(name.parent, name.number):
            raise _not_restorable(name)
        version = await find_version(records, name)
        await Journal(records, name.parent, self._clock.now(), by).write(
            "RESTORE", version.name, to_state=version.stage, reason=reason
        )
        return version

    async def delete_release(self, records: RolloutRecords, name: ReleaseName, reason: str, by: str) -> None:
        """Delete a release that is neither champion, challenger nor variant; gateways drop it.

        Raises UnknownModel, UnknownRelease, ReleaseInUse.
        """
        await lock_model(records, name.parent)
        release = await find_release(records, name)
        routing = await records.routing(name.parent)
        served = {routing.champion, routing.challenger, *(v.release for v in routing.variants)}
        if release.number in served:
            raise ReleaseInUse(f"{name} is champion, challenger or a variant: serve another one first.")
        journal = Journal(records, name.parent, self._clock.now(), by)
        await records.delete_release(release, journal.at)
        if routing.champion is not None:
            # Equal routing, so the same generation: gateways hear that the release is no longer kept warm.
            await records.set_routing(name.parent, routing)
        await journal.write("DELETE", release.name, reason=reason)

    async def restore_release(
        self, records: RolloutRecords, name: ReleaseName, reason: str, by: str
    ) -> Release:
        """Restore a deleted release of a version that was not deleted.

        Raises UnknownModel, UnknownModelVersion, NotRestorable.
        """
        await lock_model(records, name.parent)
        if not await records.restore_release(name.parent, name.number):
            raise _not_restorable(name)
        release = await find_release(records, name)
        await find_version(records, VersionName.numbered(name.parent, release.version))
        await Journal(records, name.parent, self._clock.now(), by).write(
            "RESTORE", release.name, reason=reason
        )
        return release

    async def delete_model(
        self, records: RolloutRecords, name: ModelName, reason: str, by: str, *, stop_serving: bool
    ) -> None:
        """Delete a model with its versions and releases.

        `stop_serving` archives its champion first: gateways then answer no requests for the model. Raises
        UnknownModel, and ModelInUse while a rollout is active, or a release serves without `stop_serving`.
        """
        model = str(name)
        await lock_model(records, model)
        routing = await records.routing(model)
        journal = Journal(records, model, self._clock.now(), by)
        if await records.active_rollout(model) is not None:
            raise ModelInUse(f"A rollout of {model} is active: abort it first.")
        if routing.champion is not None:
            if not stop_serving:
                raise ModelInUse(f"Release {routing.champion} of {model} serves: set `stop_serving`.")
            champion = await records.champion(model)
            if champion is not None:
                await change_stage(records, journal, champion, Stage.ARCHIVED, reason, action="ARCHIVE")
            await records.set_routing(model, Routing(routing.generation + 1))
            await records.end_span(model, journal.at)
        await journal.write("DELETE", model, reason=reason)
        await records.delete_model(model, journal.at)

    async def restore_model(self, records: RolloutRecords, name: ModelName, reason: str, by: str) -> Model:
        """Restore a deleted model with what was deleted with it; it does not serve. Raises NotRestorable."""
        if not await records.restore_model(str(name)):
            raise _not_restorable(name)
        await lock_model(records, str(name))
        await Journal(records, str(name), self._clock.now(), by).write("RESTORE", str(name), reason=reason)
        found = await records.model(str(name))
        assert found is not None
        return found


def _not_restorable(name: object) -> NotRestorable:
    return NotRestorable(f"There is no deleted {name} that could be restored.", resource=str(name))
