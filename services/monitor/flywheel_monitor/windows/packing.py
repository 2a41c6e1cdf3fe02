"""Sparse counts as bytes."""

from __future__ import annotations

import struct

import numpy as np

from flywheel_common.arrays import Ints

_HEADER = struct.Struct("<I")


def pack(indices: Ints, values: Ints) -> bytes:
    """u32 n, then n u32 indices, then n i32 values (negative where a label correction outweighs the
    counts)."""
    return _HEADER.pack(len(indices)) + indices.astype("<u4").tobytes() + values.astype("<i4").tobytes()


def unpack(packed: bytes) -> tuple[Ints, Ints]:
    """(indices, values) of packed counts."""
    (n,) = _HEADER.unpack_from(packed)
    indices = np.frombuffer(packed, "<u4", n, 4).astype(np.int64)
    return indices, np.frombuffer(packed, "<i4", n, 4 + 4 * n).astype(np.int64)
