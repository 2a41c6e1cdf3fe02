"""The home of a prediction id: the partition of its hash (`topics.partition_for`).

Ids that are at home in two different partitions differ if both homes refer to the same number of partitions.
So a transaction whose ids are all at home needs to compare them with other partitions only where packs have
ids that were not at home, or were at home while the topic had another number of partitions. The number that a
member assumes decides what is read, never what is found."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

_WIDTH = 36
"""Characters of a UUID."""
_ZERO = zlib.crc32(bytes(_WIDTH))
_CRC = np.array(
    [
        [zlib.crc32(bytes(k) + bytes([value]) + bytes(_WIDTH - 1 - k)) ^ _ZERO for value in range(256)]
        for k in range(_WIDTH)
    ],
    np.uint32,
)
"""CRC-32 is linear: the change of the sum by each value of each byte of a text of _WIDTH bytes."""


class Home(NamedTuple):
    """Where the ids of a transaction are: the partition they were read from, and the number of partitions for
    which all of them are at home there; NOWHERE if one is not."""

    partition: int
    partitions: int


NOWHERE = 0
ANYWHERE = Home(-1, NOWHERE)
"""Ids of any partition."""


def home_of(ids: Sequence[str], partition: int, partitions: int) -> Home:
    """The home of ids that were read from a partition of a topic with so many partitions."""
    at_home = bool((hashes_of(ids) % np.uint32(partitions) == partition).all())
    return Home(partition, partitions if at_home else NOWHERE)


def hashes_of(ids: Sequence[str]) -> npt.NDArray[np.uint32]:
    """[n] CRC-32 of each id."""
    if set(map(len, ids)) == {_WIDTH} and (joined := "".join(ids)).isascii():
        texts = np.frombuffer(joined.encode(), np.uint8).reshape(-1, _WIDTH)
        found = np.full(len(ids), _ZERO, np.uint32)
        for k in range(_WIDTH):
            found ^= _CRC[k].take(texts[:, k])
        return found
    return np.fromiter(map(zlib.crc32, map(str.encode, ids)), np.uint32, len(ids))
