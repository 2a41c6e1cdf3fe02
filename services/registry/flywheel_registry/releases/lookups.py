"""Look-ups of releases that raise an error when the release does not exist."""

from __future__ import annotations

from flywheel_registry.releases.errors import UnknownRelease
from flywheel_registry.releases.names import ReleaseName
from flywheel_registry.releases.ports import ReleaseRecords
from flywheel_registry.releases.release import Release


async def find_release(records: ReleaseRecords, name: ReleaseName) -> Release:
    """Return the release. Raises UnknownRelease."""
    found = await records.release(name.parent, name.number)
    if found is None:
        raise UnknownRelease(
            f"Release {name} does not exist: list the releases of {name.parent}.", release=name
        )
    return found
