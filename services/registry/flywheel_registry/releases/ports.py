"""The port to stored releases."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

from flywheel_registry.models.ports import ModelRecords
from flywheel_registry.releases.release import Release


class ReleaseRecords(ModelRecords, Protocol):
    """Releases, beside the models and versions of the same transaction."""

    async def add_release(self, release: Release) -> Release:
        """Add a release with the next number of its model; it can never be changed."""
        ...

    async def release(self, model: str, number: int) -> Release | None: ...

    async def releases(self, model: str, before: int, limit: int) -> list[Release]:
        """Return releases with a number below `before`, newest first."""
        ...

    async def newest_release_of(self, model: str, version: int) -> Release | None: ...

    async def releases_of(self, model: str, version: int, limit: int) -> list[Release]:
        """Return the releases of a version, newest first."""
        ...

    async def delete_release(self, release: Release, at: datetime) -> None:
        """Hide a release that is not served. Its number is not reused."""
        ...

    async def restore_release(self, model: str, number: int) -> bool:
        """Show a deleted release again; return False when there is none."""
        ...
