"""Rows and tiles in Redis."""

from __future__ import annotations

import hashlib
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
)
from flywheel_feature.windows.tile_layout import TileLayout
from flywheel_feature.windows.tile_writing import Delta

_SHA = {
    s: hashlib.sha1(s.encode(), usedforsecurity=False).hexdigest()
    for s in (WRITE_ROW, MERGE_TILES, ADVANCE_POSITION, TAKE_POSITIONS, MARK_GENERATION)
}
GENERATION = "generation"
IDENTITY = b"flywheel:identity"
MARKERS = [f"flywheel:generation:{{{i}}}".encode() for i in range(64)]
"""Spread over the slots of a cluster: one of them goes where a node lost its data."""


class OnlineStore:
    """Every write is atomic per key and may be repeated. Raises Unavailable ONLINE_STORE_DOWN, all but `read` before the running
    call's deadline where it has one: who reads in a crowd waits for itself (online.py)."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe

    async def ping(self) -> bool:
        return bool(await self._pipe.call("PING"))

    async def read(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        """Values of all keys in one round trip, None where there is none."""
        return await self._pipe.mget(keys) if keys else []

    async def write_rows(self, keys: Sequence[bytes], rows: Sequence[bytes], lifetime_ms: int) -> int:
        """Each row unless a newer or the same one is there; how many were written."""
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
        """Merge (key, delta, first offset, next offset) of one partition. Per delta the offset up to which the key has
        now seen the partition: less than its next offset when part of its events had been seen (nothing was merged), -1
        when the key is of a newer generation."""
        lists = ",".join(str(n) for n in layout.lists.values())
        kinds = "".join("t" if f in layout.texts else "l" for f in layout.lists) + "s" * len(layout.sketches)
        calls = [
            (
                key,
                (
                    layout.operations, lists, partition, first, following, lifetime_ms, layout.kept_tiles, delta.newest, delta.body,
                    delta.texts, kinds, generation,
                ),
            )
            for key, delta, first, following in deltas
        ]  # fmt: skip
        return await self._run(MERGE_TILES, calls)

    async def positions(self, project: str, source: str) -> dict[str, str]:
        """Applied positions of a source: `view@version/partition` → text."""
        async with in_time(store_down):
            return _positions(await self._pipe.call("HGETALL", position_key(project, source)))

    async def take_positions(self, project: str, source: str, generation: int) -> dict[str, str]:
        """The same in a generation; positions of an older one are forgotten."""
        key = position_key(project, source)
        (flat,) = await self._run(TAKE_POSITIONS, [(key, (generation,))])
        return _positions(flat)

    async def advance(
        self, project: str, source: str, moves: Mapping[str, tuple[str, str]], generation: int
    ) -> list[bool]:
        """Per field from an expected value to a new one; False where another value, or another generation, was found."""
        calls = [
            (position_key(project, source), (f, old, new, generation)) for f, (old, new) in moves.items()
        ]
        return [bool(a) for a in await self._run(ADVANCE_POSITION, calls)]

    async def delete(self, keys: Sequence[bytes]) -> int:
        """How many of the keys were there."""
        async with in_time(store_down):
            answers = await self._pipe.calls([("UNLINK", key) for key in keys])
        return sum(_number(a) for a in answers)

    async def generation(self) -> int | None:
        """The generation that everything in Redis belongs to; None when Redis lost data since it was marked."""
        found = set(await self.read(MARKERS))
        (marker, *others) = found
        if marker is None or others:
            return None
        identity = await self._pipe.identity()
        if identity and await self._pipe.call("GET", IDENTITY) != identity.encode():
            return None
        return int(marker)

    async def mark_generation(self, generation: int) -> None:
        """From now on this is the generation, unless a newer one is marked."""
        identity = await self._pipe.identity()
        await self._run(MARK_GENERATION, [(m, (generation,)) for m in MARKERS])
        if identity:
            # Last: a member that dies before leaves a difference, and the next one begins another generation.
            await self._pipe.call("SET", IDENTITY, identity)

    async def _run(self, script: str, calls: Sequence[tuple[bytes, tuple[Argument, ...]]]) -> list[Any]:
        commands: list[tuple[Argument, ...]] = [
            ("EVALSHA", _SHA[script], 1, key, *arguments) for key, arguments in calls
        ]
        async with in_time(store_down):
            answers = await self._pipe.calls(commands)
            missing = [
                i
                for i, a in enumerate(answers)
                if isinstance(a, hiredis.HiredisError) and str(a).startswith("NOSCRIPT")
            ]
            if missing:
                await self._pipe.call("SCRIPT", "LOAD", script)
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
