"""Rows, tiles and applied positions in Redis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import hiredis

from flywheel_common.deadline import in_time
from flywheel_feature.online.errors import store_down
from flywheel_feature.store.redis.cluster import Pipe
from flywheel_feature.store.redis.connection import Argument, RedisReplyError
from flywheel_feature.store.redis.scripts import (
    ADVANCE_POSITION,
    MARK_GENERATION,
    MERGE_TILES,
    TAKE_POSITIONS,
    WRITE_ROW,
    Script,
)
from flywheel_feature.windows.tile_layout import TileLayout
from flywheel_feature.windows.tile_writing import Delta

GENERATION = "generation"
IDENTITY = b"flywheel:identity"
MARKERS = [f"flywheel:generation:{{{i}}}".encode() for i in range(64)]
"""Spread over the slots of a cluster, so that at least one marker is missing after a node lost its data."""


class OnlineStore:
    """Rows and tiles by key; every write is atomic per key and may be repeated.

    Raises Unavailable ONLINE_STORE_DOWN. All methods except `read` raise it before the deadline of the
    running call; the callers of `read` share batches and apply their own deadline (online/lookup.py).
    """

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe

    async def ping(self) -> bool:
        return bool(await self._pipe.call("PING"))

    async def read(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        """The values of all keys in one round trip; None for a missing key."""
        return await self._pipe.mget(keys) if keys else []

    async def write_rows(self, keys: Sequence[bytes], rows: Sequence[bytes], lifetime_ms: int) -> int:
        """Write each row unless a newer row or the same row is stored; returns how many were written."""
        lifetime = str(lifetime_ms)
        answers = await self._run(WRITE_ROW, [(k, (r, lifetime)) for k, r in zip(keys, rows, strict=True)])
        return sum(answers)

    async def merge_tiles(
        self,
        layout: TileLayout,
        deltas: Sequence[tuple[bytes, Delta, int, int]],
        partition: int,
        lifetime_ms: int,
        generation: int,
    ) -> list[int]:
        """Merge deltas (key, delta, first offset, next offset) of one partition.

        Returns per delta the offset up to which the key has now seen the partition. It is less than the
        delta's next offset when the key had seen a part of its events (nothing was merged then), and -1 when
        the key belongs to a newer generation.
        """
        lists = ",".join(str(n) for n in layout.lists.values())
        kinds = "".join("t" if f in layout.texts else "l" for f in layout.lists) + "s" * len(layout.sketches)
        calls: list[tuple[bytes, tuple[Argument, ...]]] = []
        for key, delta, first, following in deltas:
            offsets = partition, first, following
            content = delta.newest, delta.body, delta.texts
            limits = lifetime_ms, layout.kept_tiles
            last = kinds, generation, delta.first
            calls.append((key, (layout.operations, lists, *offsets, *limits, *content, *last)))
        return await self._run(MERGE_TILES, calls)

    async def positions(self, project: str, source: str) -> dict[str, str]:
        """The applied positions of a source: `view@version/partition` → text."""
        async with in_time(store_down):
            return _positions(await self._pipe.call("HGETALL", position_key(project, source)))

    async def take_positions(self, project: str, source: str, generation: int) -> dict[str, str]:
        """The applied positions in a generation; positions of an older generation are deleted first."""
        key = position_key(project, source)
        (flat,) = await self._run(TAKE_POSITIONS, [(key, (generation,))])
        return _positions(flat)

    async def advance(
        self, project: str, source: str, moves: Mapping[str, tuple[str, str]], generation: int
    ) -> list[bool]:
        """Move each field from its expected value to a new one.

        Returns False for a field that held another value, or whose source belongs to another generation.
        """
        calls = [
            (position_key(project, source), (f, old, new, generation)) for f, (old, new) in moves.items()
        ]
        return [bool(a) for a in await self._run(ADVANCE_POSITION, calls)]

    async def delete(self, keys: Sequence[bytes]) -> int:
        """Delete keys; returns how many of them existed."""
        async with in_time(store_down):
            answers = await self._pipe.calls([("UNLINK", key) for key in keys])
        return sum(_number(a) for a in answers)

    async def generation(self) -> int | None:
        """The generation of everything in Redis; None when Redis lost data since it was marked."""
        found = set(await self.read(MARKERS))
        (marker, *others) = found
        if marker is None or others:
            return None
        identity = await self._pipe.identity()
        if identity and await self._pipe.call("GET", IDENTITY) != identity.encode():
            return None
        return int(marker)

    async def mark_generation(self, generation: int) -> None:
        """Mark this generation as the current one, unless a newer one is marked."""
        identity = await self._pipe.identity()
        await self._run(MARK_GENERATION, [(m, (generation,)) for m in MARKERS])
        if identity:
            # Written last: if a member dies before this, the identities differ and the next member begins a
            # new generation.
            await self._pipe.call("SET", IDENTITY, identity)

    async def _run(self, script: Script, calls: Sequence[tuple[bytes, tuple[Argument, ...]]]) -> list[Any]:
        commands: list[tuple[Argument, ...]] = [
            ("EVALSHA", script.sha, 1, key, *arguments) for key, arguments in calls
        ]
        async with in_time(store_down):
            answers = await self._pipe.calls(commands)
            missing = [
                i
                for i, a in enumerate(answers)
                if isinstance(a, hiredis.HiredisError) and str(a).startswith("NOSCRIPT")
            ]
            if missing:
                await self._pipe.call("SCRIPT", "LOAD", script.source)
                again = await self._pipe.calls([commands[i] for i in missing])
                for i, answer in zip(missing, again, strict=True):
                    answers[i] = answer
        for answer in answers:
            if isinstance(answer, hiredis.HiredisError):
                if str(answer).startswith(("LOADING", "READONLY", "OOM", "MASTERDOWN", "NOREPLICAS")):
                    raise store_down()
                raise RedisReplyError(f"Redis refused a script: {answer}")
        return answers


def _positions(flat: Sequence[bytes]) -> dict[str, str]:
    found = {k.decode(): v.decode() for k, v in zip(flat[::2], flat[1::2], strict=True)}
    found.pop(GENERATION, None)
    return found


def _number(answer: Any) -> int:
    if isinstance(answer, hiredis.HiredisError):
        raise RedisReplyError(f"Redis refused a command: {answer}")
    return int(answer)


def position_key(project: str, source: str) -> bytes:
    return f"{project}/{source}:applied".encode()
