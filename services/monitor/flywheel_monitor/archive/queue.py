"""What waits for the archive: batches, segments, and bitmaps of the rows to archive."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from flywheel_common.arrays import Mask


@dataclass(frozen=True)
class Waiting:
    """Batches of a model that wait for the archive: their rows, and the wall time since the newest
    (`idle_seconds`) and the oldest (`age_seconds`) was queued."""

    model: str
    rows: int
    idle_seconds: float
    age_seconds: float


@dataclass(frozen=True)
class Segment:
    """Batches of a model that are archived together."""

    id: int
    model: str


def pack_kept(kept: Mask) -> bytes:
    """The mask as a bitmap; empty if all rows are kept."""
    return b"" if bool(kept.all()) else np.packbits(kept, bitorder="little").tobytes()


def pack_batches(payloads: Sequence[bytes]) -> tuple[bytes, bytes]:
    """The batches behind each other, and where each ends."""
    ends = np.cumsum([len(p) for p in payloads])
    return b"".join(payloads), ends.astype("<u4").tobytes()


def unpack_batches(packed: bytes, ends: bytes) -> list[bytes]:
    """The batches that `pack_batches` packed; without ends it is one."""
    if not ends:
        return [packed]
    bounds = [0, *np.frombuffer(ends, "<u4").tolist()]
    return [packed[a:b] for a, b in pairwise(bounds)]


def unpack_kept(packed: bytes, rows: int) -> Mask:
    """The [rows] mask that `pack_kept` packed."""
    if not packed:
        return np.ones(rows, np.bool_)
    return np.unpackbits(np.frombuffer(packed, np.uint8), count=rows, bitorder="little").astype(np.bool_)
