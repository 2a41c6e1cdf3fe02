"""What an erasure keeps and changes in PostgreSQL, in memory, for unit tests: tombstones, garbage, the push log. Held to the same contract
suites as store/tombstones.py and store/push_log.py.

Ports: erasure_ports.Stones and PushArchive, push_log.PushedSegments.
"""

from __future__ import annotations

from dataclasses import replace

from flywheel_feature.erased import Tombstone, Tombstones

Garbage = dict[str, None]
"""Keys of objects to delete; stores that name garbage share one."""


class MemoryTombstones:
    def __init__(self, garbage: Garbage) -> None:
        self._garbage = garbage
        self._stones: dict[str, dict[str, dict[bytes, Tombstone]]] = {}

    def of(self, project: str) -> Tombstones:
        return self._stones.get(project, {})

    async def put(self, project: str, entity: str, key_hash: bytes, stone: Tombstone) -> None:
        stones = self._stones.setdefault(project, {}).setdefault(entity, {})
        before = stones.get(key_hash, stone)
        stones[key_hash] = replace(stone, erased_at=max(stone.erased_at, before.erased_at))

    async def add_garbage(self, keys: list[str]) -> None:
        self._garbage.update(dict.fromkeys(keys))

    async def garbage(self) -> list[str]:
        return sorted(self._garbage)

    async def deleted(self, key: str) -> None:
        self._garbage.pop(key, None)


class MemoryPushLog:
    def __init__(self, garbage: Garbage) -> None:
        self._garbage = garbage
        self._keys: dict[tuple[str, str], dict[int, str]] = {}
        self._last = 0

    async def add(self, project: str, view: str, key: str, rows: int) -> None:
        self._last += 1
        self._keys.setdefault((project, view), {})[self._last] = key

    async def keys(self, project: str, view: str) -> list[tuple[int, str]]:
        return sorted(self._keys.get((project, view), {}).items())

    async def replace(self, old: str, new: str, rows: int) -> None:
        self._garbage[old] = None
        for held in self._keys.values():
            for number in [n for n, key in held.items() if key == old]:
                if rows:
                    held[number] = new
                else:
                    del held[number]
