"""Buckets of prediction ids: a bucket names the packs in which an id can be.

UUIDs of version 7 begin with their time. All ids of half a second are one bucket, so that a pack of a stream
is in few of them. Other UUIDs have their first 64 bits, other texts 64 bits of a hash, as a bucket of their
own; a text of 36 ASCII characters that begins like a UUID counts as one. The full id decides in the packs: a
bucket that two ids share costs time only. Migration 0016 has the same rule in SQL."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

import numpy as np

from flywheel_common.arrays import Ints, Mask

MILLISECOND_BITS = 9
"""Low bits of the milliseconds of an id that its bucket leaves out."""
_WIDTH = 36
_HYPHEN = ord("-")
_NO_BYTE = 256
_BYTES = np.full(1 << 16, _NO_BYTE, np.uint16)
"""The byte that two hexadecimal digits, as a little-endian number of their characters, stand for."""
_BYTES[np.frombuffer("".join(f"{b:02x}" for b in range(256)).encode(), "<u2")] = np.arange(256)


def buckets_of(ids: Sequence[str]) -> Ints:
    """[n] int64 bucket of each id."""
    if set(map(len, ids)) == {_WIDTH} and (joined := "".join(ids)).isascii():
        is_uuid, found = _uuids(joined)
        others = np.flatnonzero(~is_uuid).tolist()
    else:
        found = np.zeros(len(ids), np.int64)
        long = [i for i, text in enumerate(ids) if len(text) == _WIDTH and text.isascii()]
        is_uuid, buckets = _uuids("".join([ids[i] for i in long]))
        found[long] = buckets
        others = sorted(set(range(len(ids))).difference(np.array(long, np.int64)[is_uuid].tolist()))
    for i in others:
        found[i] = int.from_bytes(sha256(ids[i].encode()).digest()[:8], "big", signed=True)
    return found


def _uuids(joined: str) -> tuple[Mask, Ints]:
    """Which of n joined texts begin like UUIDs, and the buckets of these."""
    texts = np.frombuffer(joined.encode(), np.uint8).reshape(-1, _WIDTH)
    digits = np.concatenate([texts[:, 0:8], texts[:, 9:13], texts[:, 14:18]], axis=1)
    leading = _BYTES[digits.view("<u2")]
    is_uuid = (leading != _NO_BYTE).all(axis=1) & (texts[:, 8] == _HYPHEN) & (texts[:, 13] == _HYPHEN)
    first = leading.astype(np.uint8).view(">u8").reshape(-1).astype(np.uint64)
    timed = leading[:, 6] >> 4 == 7
    return is_uuid, np.where(timed, first >> np.uint64(16 + MILLISECOND_BITS), first).view(np.int64)
