"""What waits for the archive: batches, segments, and bitmaps of the rows to archive."""

from __future__ import annotations

from dataclasses import dataclass

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


def unpack_kept(packed: bytes, rows: int) -> Mask:
    """The [rows] mask that `pack_kept` packed."""
    if not packed:
        return np.ones(rows, np.bool_)
    return np.unpackbits(np.frombuffer(packed, np.uint8), count=rows, bitorder="little").astype(np.bool_)
