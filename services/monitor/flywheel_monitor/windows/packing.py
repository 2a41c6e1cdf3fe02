"""Panes as bytes, with the version of their layout.

Version 1: the counts are u32 n, n u32 indices and n i32 values; the sums are int64. Version 2: the counts are
u32 MARK | size << 16 | 2, u32 n, n u32 indices and n signed integers of `size` bytes, the smallest that hold
the values; the sums have LIMBS int64 each (`windows.sums`). Versions 3 to 5 have the same bytes. The
layout of each version extends that of the one before at its end, so that indices keep their meaning.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

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
    _, indices, values = unpack_all([packed])
    return indices, values


def unpack_all(packed: Sequence[bytes]) -> tuple[Ints, Ints, Ints]:
    """(number of the pane, index, value) of all counts of some panes, in any order. Raises UnknownLayout for
    a version of a newer monitor."""
    alike: dict[int, list[tuple[int, bytes, bytes]]] = {}
    for number, pane in enumerate(packed):
        size, at, n = _header(pane)
        values = at + 4 * n
        alike.setdefault(size, []).append((number, pane[at:values], pane[values : values + size * n]))
    found = [(np.zeros(0, np.int64),) * 3]
    for size, panes in alike.items():
        numbers, indices, values_of = zip(*panes, strict=True)
        counts = [len(each) // 4 for each in indices]
        found.append(
            (
                np.repeat(np.array(numbers, np.int64), counts),
                np.frombuffer(b"".join(indices), "<u4").astype(np.int64),
                np.frombuffer(b"".join(values_of), f"<i{size}").astype(np.int64),
            )
        )
    which, index, value = (np.concatenate(column) for column in zip(*found, strict=True))
    return which, index, value


def _header(packed: bytes) -> tuple[int, int, int]:
    """(bytes of a value, where the indices begin, number of counts)."""
    version = version_of(packed)
    if version == 1:
        return 4, _FIRST.size, _FIRST.unpack_from(packed)[0]
    if version > LAYOUT_VERSION:
        raise UnknownLayout(
            f"A stored pane has layout version {version}: start the newer monitor that wrote it."
        )
    first, n = _HEADER.unpack_from(packed)
    return (first & ~_MARK) >> _SIZE_SHIFT, _HEADER.size, n


def pack_sums(sums: Ints) -> bytes:
    """[n, LIMBS] canonical sums."""
    return sums.astype("<i8").tobytes()


def sums_of_version(packed: bytes, size: int, features: int, version: int) -> bytes:
    """Packed sums of a layout version as [size, LIMBS] little-endian integers."""
    if version == 1:
        found = np.zeros((size, LIMBS), "<i8")
        stored = np.frombuffer(packed, "<i8")
        found[: len(stored), 0] = stored
        # Split, because 2^16 times an old sum may have more than 64 bits.
        found[:features, 0] = (stored[:features] & 0xFFFFFF) << _LEGACY_Z_SHIFT
        found[:features, 1] = stored[:features] >> 24
        packed = found.tobytes()
    return packed.ljust(8 * LIMBS * size, b"\0")
