"""Panes as bytes, with the version of their layout.

Version 1: the counts are u32 n, n u32 indices and n i32 values; the sums are int64. Version 2: the counts are
u32 MARK | size << 16 | 2, u32 n, n u32 indices and n signed integers of `size` bytes, the smallest that hold
the values; the sums have LIMBS int64 each (`windows.sums`). Versions 3 to 5 have the same bytes. The
layout of each version extends that of the one before at its end, so that indices keep their meaning.
"""

from __future__ import annotations

import struct

import numpy as np

from flywheel_common.arrays import Ints
from flywheel_monitor.windows.errors import UnknownLayout
from flywheel_monitor.windows.sums import LIMBS

LAYOUT_VERSION = 5
_MARK = 1 << 31
_SIZE_SHIFT = 16
_VERSION_MASK = (1 << _SIZE_SHIFT) - 1
_SIZES = (1, 2, 4, 8)
_FIRST = struct.Struct("<I")
_HEADER = struct.Struct("<II")
_LEGACY_Z_SHIFT = 16
"""Sums of features had the scale 2^16 in version 1, now 2^32."""


def pack(indices: Ints, values: Ints) -> bytes:
    """The counts (negative where a label correction outweighs the others)."""
    largest = max(int(values.max(initial=0)), -int(values.min(initial=0)))
    size = next(size for size in _SIZES if largest < 1 << (8 * size - 1))
    header = _HEADER.pack(_MARK | size << _SIZE_SHIFT | LAYOUT_VERSION, len(indices))
    return header + indices.astype("<u4").tobytes() + values.astype(f"<i{size}").tobytes()


def version_of(packed: bytes) -> int:
    """The layout version of packed counts."""
    (first,) = _FIRST.unpack_from(packed)
    return first & _VERSION_MASK if first >= _MARK else 1


def unpack(packed: bytes) -> tuple[Ints, Ints]:
    """(indices, values) of packed counts. Raises UnknownLayout for a version of a newer monitor."""
    version = version_of(packed)
    if version == 1:
        (n,) = _FIRST.unpack_from(packed)
        at, size = _FIRST.size, 4
    elif version <= LAYOUT_VERSION:
        first, n = _HEADER.unpack_from(packed)
        at, size = _HEADER.size, (first & ~_MARK) >> _SIZE_SHIFT
    else:
        raise UnknownLayout(
            f"A stored pane has layout version {version}: start the newer monitor that wrote it."
        )
    indices = np.frombuffer(packed, "<u4", n, at).astype(np.int64)
    return indices, np.frombuffer(packed, f"<i{size}", n, at + 4 * n).astype(np.int64)


def pack_sums(sums: Ints) -> bytes:
    """[n, LIMBS] canonical sums."""
    return sums.astype("<i8").tobytes()


def unpack_sums(packed: bytes, size: int, features: int, version: int) -> Ints:
    """[size, LIMBS] sums, of which the first are those of `features` features."""
    found = np.zeros((size, LIMBS), np.int64)
    stored = np.frombuffer(packed, "<i8")
    if version == 1:
        found[: len(stored), 0] = stored
        found[:features, 0] = 0
        # Split, because 2^16 times an old sum may have more than 64 bits.
        found[:features, 0] = (stored[:features] & 0xFFFFFF) << _LEGACY_Z_SHIFT
        found[:features, 1] = stored[:features] >> 24
        return found
    rows = stored.reshape(-1, LIMBS)
    found[: len(rows)] = rows
    return found
