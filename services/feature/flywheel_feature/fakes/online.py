"""The online store in memory, for unit tests; the contract tests run over it too.

Rows and tiles are stored as in store/redis/online_store.py. Lifetimes are ignored: nothing expires. Only
tiles of numbers are supported: no texts, no APPROX_DISTINCT.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

import numpy as np

from flywheel_common.arrays import Floats
from flywheel_feature.windows.tile_layout import ENTRY, FIRST_EVENT, FORMAT, GENERATION, TileLayout
from flywheel_feature.windows.tile_writing import Delta, state_of


class MemoryOnlineStore:
    """Rows, tiles, applied positions and generation markers in dictionaries."""

    def __init__(self) -> None:
        self._values: dict[bytes, bytes] = {}
        self._positions: dict[tuple[str, str], dict[str, str]] = {}
        self._generations: dict[tuple[str, str], int] = {}
        self._marked: int | None = None

    async def generation(self) -> int | None:
        return self._marked

    async def mark_generation(self, generation: int) -> None:
        self._marked = generation if self._marked is None else max(generation, self._marked)

    async def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return [self._values.get(key) for key in keys]

    async def write_rows(self, keys: Sequence[bytes], rows: Sequence[bytes], lifetime_ms: int) -> int:
        written = 0
        for key, row in zip(keys, rows, strict=True):
            old = self._values.get(key)
            times, old_times = (struct.unpack_from("<qq", r, 1) if r else (-(2**63),) for r in (row, old))
            if times > old_times or (times == old_times and row != old):
                self._values[key] = row
                written += 1
        return written

    async def delete(self, keys: Sequence[bytes]) -> int:
        return sum(self._values.pop(key, None) is not None for key in keys)

    async def merge_tiles(
        self,
        layout: TileLayout,
        deltas: Sequence[tuple[bytes, Delta, int, int]],
        partition: int,
        lifetime_ms: int,
        generation: int,
    ) -> list[int]:
        answers = []
        for key, delta, first, following in deltas:
            added = _State.parse(layout, state_of(layout, delta, {}))
            state = _State.parse(layout, self._values.get(key))
            state_generation = state.offsets.setdefault(GENERATION, generation)
            if state_generation > generation:
                answers.append(-1)
                continue
            if state_generation < generation:
                state = _State.parse(layout, None)
                state.offsets[GENERATION] = generation
            seen = state.offsets.get(partition)
            if seen is not None and (following <= seen or first < seen):
                answers.append(seen)
                continue
            state.merge(added)
            state.offsets[partition] = following
            self._values[key] = state.to_bytes()
            answers.append(following)
        return answers

    async def positions(self, project: str, source: str) -> dict[str, str]:
        return dict(self._positions.get((project, source), {}))

    async def take_positions(self, project: str, source: str, generation: int) -> dict[str, str]:
        stored = self._generations.get((project, source), 0)
        if stored > generation:
            return {}
        if stored < generation:
            self._positions.pop((project, source), None)
        self._generations[project, source] = generation
        return await self.positions(project, source)

    async def advance(
        self, project: str, source: str, moves: Mapping[str, tuple[str, str]], generation: int
    ) -> list[bool]:
        if self._generations.get((project, source)) != generation:
            return [False] * len(moves)
        positions = self._positions.setdefault((project, source), {})
        answers = []
        for name, (expected, new) in moves.items():
            matches = positions.get(name, "") == expected
            if matches:
                positions[name] = new
            answers.append(matches)
        return answers


class _State:
    """The parts of a state (windows/tile_layout.py documents the layout)."""

    def __init__(self, layout: TileLayout) -> None:
        assert not layout.texts
        assert not layout.sketches
        self.layout = layout
        self.newest = -float("inf")
        self.tiles: dict[float, Floats] = {}
        self.lists: list[list[tuple[float, ...]]] = [[] for _ in layout.lists]
        self.offsets: dict[int, int] = {}

    @classmethod
    def parse(cls, layout: TileLayout, blob: bytes | None) -> _State:
        state = cls(layout)
        if blob is None:
            return state
        data = np.frombuffer(blob, "<f8")
        _, state.newest, tiles, partitions, *counts = data[: layout.header].tolist()
        at = layout.header
        for _ in range(int(tiles)):
            state.tiles[data[at]] = data[at + 1 : at + layout.stride].copy()
            at += layout.stride
        for entries, count in zip(state.lists, counts, strict=True):
            entries += map(tuple, data[at : at + int(count) * ENTRY].reshape(-1, ENTRY).tolist())
            at += int(count) * ENTRY
        for p, offset in data[at : at + int(partitions) * 2].reshape(-1, 2).tolist():
            state.offsets[int(p)] = int(offset)
        return state

    def merge(self, other: _State) -> None:
        self.newest = max(self.newest, other.newest)
        if not self.tiles:
            self.offsets[FIRST_EVENT] = other.offsets[FIRST_EVENT]
        elif FIRST_EVENT in self.offsets:
            self.offsets[FIRST_EVENT] = min(self.offsets[FIRST_EVENT], other.offsets[FIRST_EVENT])
        for index, tile in other.tiles.items():
            mine = self.tiles.get(index)
            self.tiles[index] = tile if mine is None else _merged(self.layout.operations, mine, tile)
        before, latest = sorted(self.tiles)[-2:] if len(self.tiles) > 1 else [max(self.tiles)] * 2
        oldest = (latest if latest - before < self.layout.kept_tiles else before) - self.layout.kept_tiles + 1
        self.tiles = {index: self.tiles[index] for index in sorted(self.tiles) if index >= oldest}
        kept = self.layout.lists.values()
        self.lists = [
            sorted(a + b, key=lambda e: e[:3])[-n:]
            for a, b, n in zip(self.lists, other.lists, kept, strict=True)
        ]

    def to_bytes(self) -> bytes:
        flat = [FORMAT, self.newest, len(self.tiles), len(self.offsets), *map(len, self.lists)]
        for index, tile in self.tiles.items():
            flat += [index, *tile.tolist()]
        flat += [x for entries in self.lists for entry in entries for x in entry]
        flat += [x for pair in self.offsets.items() for x in pair]
        return np.array(flat, "<f8").tobytes()


def _merged(operations: str, a: Floats, b: Floats) -> Floats:
    out = a.copy()
    for i, operation in enumerate(operations):
        if operation == "+":
            out[i] = a[i] + b[i]
        elif operation == "<":
            out[i] = min(a[i], b[i])
        elif operation == ">":
            out[i] = max(a[i], b[i])
        elif operation == "v":
            n, m = a[i - 2], b[i - 2]
            between = (b[i - 1] / m - a[i - 1] / n) ** 2 * n * m / (n + m) if n and m else 0.0
            out[i] = a[i] + b[i] + between
        elif operation == "f" and tuple(b[i : i + 3]) < tuple(a[i : i + 3]):
            out[i : i + 4] = b[i : i + 4]
    return out
