"""Creates releases."""

from __future__ import annotations

from dataclasses import replace

from flywheel_common.clock import Clock
from flywheel_registry.audit.journal import Journal
from flywheel_registry.models.lookups import find_version, lock_model
from flywheel_registry.models.names import VersionName
from flywheel_registry.models.version import require_ready
from flywheel_registry.releases.declaration import check_release
from flywheel_registry.releases.errors import RejectedVersion
from flywheel_registry.releases.ports import ReleaseRecords
from flywheel_registry.releases.release import Release
from flywheel_registry.stages.transitions import Stage


class ReleaseCatalog:
    """Creates releases of versions whose artifacts are stored."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    async def create_release(self, records: ReleaseRecords, release: Release, by: str) -> Release:
        """Create a release; without a feature set it takes that of its version.

        Raises UnknownModelVersion, ArtifactsPending, RejectedVersion and the errors of `check_release`.
        """
        await lock_model(records, release.model)
        version = await find_version(records, VersionName.numbered(release.model, release.version))
        check_release(release, version.signature)
        require_ready(version)
        if version.stage is Stage.REJECTED:
            raise RejectedVersion(f"{version.name} is REJECTED, which is final: release another version.")
        now = self._clock.now()
        added = await records.add_release(
            replace(
                release,
                feature_set=release.feature_set or version.feature_set,
                created_at=now,
                created_by=by,
            )
        )
        await Journal(records, added.model, now, by).write("RELEASE", added.name, reason=f"of {version.name}")
        return added
