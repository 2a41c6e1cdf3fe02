"""Releases in PostgreSQL."""

from __future__ import annotations

from dataclasses import replace

from flywheel_registry.releases.release import Release
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
        row = await self._conn.fetchrow(sql.NEWEST_RELEASE_OF, model, version)
        return None if row is None else rows.release(row)
