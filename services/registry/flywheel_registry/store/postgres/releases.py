"""Releases in PostgreSQL."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from flywheel_registry.releases.release import Release
from flywheel_registry.store.postgres import deletion_statements as deletion
from flywheel_registry.store.postgres import rows
from flywheel_registry.store.postgres import statements as sql
from flywheel_registry.store.postgres.models import PostgresModels


class PostgresReleases(PostgresModels):
    """Part of `PostgresRecords`: releases."""

    async def add_release(self, release: Release) -> Release:
        r = replace(release, number=await self._next_number(release.model, "release"))
        await self._conn.execute(
            sql.INSERT_RELEASE,
            r.model,
            r.number,
            r.version,
            r.feature_set,
            rows.release_body(r),
            r.created_at,
            r.created_by,
        )
        return r

    async def release(self, model: str, number: int) -> Release | None:
        row = await self._conn.fetchrow(sql.SELECT_RELEASE, model, number)
        return None if row is None else rows.release(row)

    async def releases(self, model: str, before: int, limit: int) -> list[Release]:
        return [rows.release(row) for row in await self._conn.fetch(sql.LIST_RELEASES, model, before, limit)]

    async def newest_release_of(self, model: str, version: int) -> Release | None:
        found = await self.releases_of(model, version, 1)
        return found[0] if found else None

    async def releases_of(self, model: str, version: int, limit: int) -> list[Release]:
        found = await self._conn.fetch(sql.RELEASES_OF, model, version, limit)
        return [rows.release(row) for row in found]

    async def delete_release(self, release: Release, at: datetime) -> None:
        await self._conn.execute(deletion.DELETE_RELEASE, release.model, release.number, at)

    async def restore_release(self, model: str, number: int) -> bool:
        return await self._conn.fetchval(deletion.RESTORE_RELEASE, model, number) is not None
