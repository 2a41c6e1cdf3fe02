"""Deletion, aliases and search in memory: a part of `MemoryRecords`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from flywheel_registry.fakes.tables import MemoryTables, Numbered
from flywheel_registry.models.alias import Alias
from flywheel_registry.models.search import VersionQuery
from flywheel_registry.models.version import GoldenRows, ModelVersion
from flywheel_registry.releases.release import Release


def without_golden_rows(version: ModelVersion) -> ModelVersion:
    """Return a version as lists show it."""
    return replace(version, golden_rows=GoldenRows(tolerance=version.golden_rows.tolerance))


class MemoryLifetimes:
    """Part of `MemoryRecords`."""

    @property
    def _data(self) -> MemoryTables:
        raise NotImplementedError

    async def delete_version(self, version: ModelVersion, at: datetime) -> None:
        self._data.deleted["version", version.model, version.number] = at

    async def restore_version(self, model: str, number: int) -> bool:
        if (model, number) in self._data.purged:
            return False
        return self._data.deleted.pop(("version", model, number), None) is not None

    async def delete_release(self, release: Release, at: datetime) -> None:
        self._data.deleted["release", release.model, release.number] = at

    async def restore_release(self, model: str, number: int) -> bool:
        return self._data.deleted.pop(("release", model, number), None) is not None

    async def delete_model(self, name: str, at: datetime) -> None:
        with_it = [("model", name, 0)]
        with_it += [("version", *key) for key in self._data.versions if key[0] == name]
        with_it += [("release", *key) for key in self._data.releases if key[0] == name]
        for key in with_it:
            self._data.deleted.setdefault(key, at)

    async def restore_model(self, name: str) -> bool:
        at = self._data.deleted.get(("model", name, 0))
        for key in [key for key, when in self._data.deleted.items() if key[1] == name and when == at]:
            if key[1:] not in self._data.purged:
                del self._data.deleted[key]
        return at is not None

    async def search_versions(self, query: VersionQuery, limit: int) -> list[ModelVersion]:
        found = [
            v
            for v in self._data.versions.values()
            if query.matches(v) and ("version", v.model, v.number) not in self._data.deleted
        ]

        def place(version: ModelVersion) -> tuple[float | datetime, str, int]:
            position = query.position(version)
            return position.value, position.model, position.number

        found.sort(key=place, reverse=query.backwards)
        if (after := query.after) is not None:
            key = (after.value, after.model, after.number)
            found = [v for v in found if (place(v) < key if query.backwards else place(v) > key)]
        return [without_golden_rows(v) for v in found[:limit]]

    async def change_tags(self, version: ModelVersion, tags: Mapping[str, str]) -> None:
        stored = self._data.versions[version.model, version.number]
        self._data.versions[version.model, version.number] = replace(stored, tags=dict(tags))

    async def alias(self, model: str, alias: str) -> Alias | None:
        return self._data.aliases.get((model, alias))

    async def aliases(self, model: str, after: str, limit: int) -> list[Alias]:
        mine = sorted(name for of, name in self._data.aliases if of == model and name > after)
        return [self._data.aliases[model, name] for name in mine[:limit]]

    async def put_alias(self, alias: Alias) -> None:
        self._data.aliases[alias.model, alias.alias] = alias

    async def delete_alias(self, alias: Alias) -> None:
        del self._data.aliases[alias.model, alias.alias]

    async def lock_digest(self, sha256: str) -> None:
        """Transactions run one after another."""

    async def block_digests(self, sha256: str) -> bytes | None:
        return self._data.blocks.get(sha256)

    async def put_block_digests(self, sha256: str, digests: bytes) -> None:
        self._data.blocks.setdefault(sha256, digests)

    async def declared_digests(self, digests: Sequence[str]) -> set[str]:
        kept = [v for key, v in self._data.versions.items() if key not in self._data.purged]
        return {a.sha256 for v in kept for a in v.artifacts}.intersection(digests)

    async def forget_digest(self, sha256: str) -> None:
        self._data.blocks.pop(sha256, None)

    async def purgeable_versions(self, before: datetime) -> int:
        return len(self._purgeable(before))

    async def purge_versions(self, before: datetime, limit: int) -> int:
        found = self._purgeable(before)[:limit]
        self._data.purged.update(dict.fromkeys(found, True))
        return len(found)

    def _purgeable(self, before: datetime) -> list[Numbered]:
        return [
            (model, number)
            for (kind, model, number), at in self._data.deleted.items()
            if kind == "version" and at < before and (model, number) not in self._data.purged
        ]
