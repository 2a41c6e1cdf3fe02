"""Buckets of prediction ids: a bucket names the packs in which an id can be.

Ids of version 7 of UUID begin with their time. All ids of half a second are one bucket, so that a pack of
a stream is in few of them. Other UUIDs have their first 64 bits, other texts 64 bits of a hash, as a bucket
of their own. The full id decides in the packs: a bucket that two ids share costs time only. Migration 0015
has the same rule in SQL."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

import numpy as np

from flywheel_common.arrays import Array, Ints

MILLISECOND_BITS = 9
"""Low bits of the milliseconds of an id that its bucket leaves out."""
_WIDTH = 36
_LEADING = np.array([0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 14, 15, 16, 17])
"""Places of the first 16 hexadecimal digits of a UUID."""
_HYPHEN = 16
_DIGITS = np.full(256, 255, np.uint8)
_DIGITS[np.frombuffer(b"0123456789abcdef-", np.uint8)] = np.arange(17)


def buckets_of(ids: Sequence[str]) -> Ints:
    """[n] int64 bucket of each id."""
    found = np.zeros(len(ids), np.int64)
    at = [i for i, text in enumerate(ids) if len(text) == _WIDTH and text.isascii()]
    others = np.ones(len(ids), np.bool_)
    if at:
        rows = np.array(at)
        joined = "".join(ids if len(at) == len(ids) else [ids[i] for i in at])
        is_uuid, buckets = _uuids(np.frombuffer(joined.encode(), np.uint8).reshape(-1, _WIDTH))
        found[rows[is_uuid]] = buckets[is_uuid]
        others[rows[is_uuid]] = False
    for i in np.flatnonzero(others).tolist():
        found[i] = int.from_bytes(sha256(ids[i].encode()).digest()[:8], "big", signed=True)
    return found


def _uuids(texts: Array) -> tuple[Array, Ints]:
    """[n] which texts are UUIDs, and the buckets of these."""
    digits = _DIGITS[texts]
    leading = digits[:, _LEADING]
    is_uuid = (digits <= _HYPHEN).all(axis=1) & (leading < _HYPHEN).all(axis=1)
    is_uuid &= (digits[:, 8] == _HYPHEN) & (digits[:, 13] == _HYPHEN)
    first = np.ascontiguousarray((leading[:, 0::2] << 4) | leading[:, 1::2]).view(">u8").reshape(-1)
    first = first.astype(np.uint64)
    timed = leading[:, 12] == 7
    buckets = np.where(timed, first >> np.uint64(16 + MILLISECOND_BITS), first)
    return is_uuid, buckets.view(np.int64)
