"""Values of one length, as rows of numbers are, kept and read as the one piece of memory in which Redis sends them.

A reply of 1,600 rows is 700 KB. A parser copies it, makes an object of every value, and whoever decodes the rows joins them again. Here
the bytes stay where they came; each value lies one stride behind the one before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import numpy as np
import numpy.typing as npt

MANY = 64
"""Values for which this is cheaper than a list."""
_LONGEST_HEAD = 32


class EqualValues(Sequence[bytes]):
    """`count` values of `size` bytes, the first at `first`, each `stride` behind the one before."""

    def __init__(self, piece: bytearray, first: int, size: int, stride: int, count: int) -> None:
        self._piece, self._first, self._stride, self._count = piece, first, stride, count
        self.size = size

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> EqualValues: ...
    def __getitem__(self, index: int | slice) -> bytes | EqualValues:
        if isinstance(index, slice):
            low, high, step = index.indices(self._count)
            first, stride = self._first + low * self._stride, step * self._stride
            return EqualValues(self._piece, first, self.size, stride, len(range(low, high, step)))
        if not -self._count <= index < self._count:
            raise IndexError(index)
        at = self._first + index % self._count * self._stride
        return bytes(self._piece[at : at + self.size])

    @property
    def matrix(self) -> npt.NDArray[np.uint8]:
        """[values, size], a view."""
        return np.ndarray((self._count, self.size), np.uint8, self._piece, self._first, (self._stride, 1))


class EqualReply:
    """Collects the reply to an MGET of `count` keys as it comes in, as long as it is one of values of one length."""

    def __init__(self, count: int) -> None:
        self.received = bytearray()
        self.length = 0
        """Bytes of the whole reply; 0: not known yet."""
        self._count = count
        self._start = b"*%d\r\n" % count
        self._head = b""
        self._stride = 0
        self._checked = 0

    def add(self, data: bytes) -> bool:
        """False when it is something else: `received` is then what a parser has to be given."""
        self.received += data
        if not self.length and not self._begun():
            return False
        return not self.length or self._as_expected()

    @property
    def whole(self) -> bool:
        return 0 < self.length <= len(self.received)

    @property
    def rest(self) -> bytes:
        """What came behind the reply."""
        return bytes(self.received[self.length :])

    @property
    def values(self) -> EqualValues:
        """Of a whole reply."""
        first = len(self._start) + len(self._head)
        return EqualValues(
            self.received, first, self._stride - len(self._head) - 2, self._stride, self._count
        )

    def _begun(self) -> bool:
        """Reads the head of the first value; False when that is not one of a value."""
        begin = bytes(self.received[: len(self._start) + _LONGEST_HEAD])
        if begin[: len(self._start)] != self._start[: len(begin)]:
            return False
        head, end, _ = begin[len(self._start) :].partition(b"\r\n")
        if not end:
            return len(begin) < len(self._start) + _LONGEST_HEAD
        if not head[1:].isdigit() or head[:1] != b"$":
            return False
        self._head = head + end
        self._stride = len(self._head) + int(head[1:]) + 2
        self.length = len(self._start) + self._count * self._stride
        return True

    def _as_expected(self) -> bool:
        """Whether every value that has begun begins as the first did: then a parser would have found each where it is."""
        end = min(len(self.received), self.length) - len(self._start)
        width = len(self._head)
        complete = (end - width) // self._stride + 1
        if complete > self._checked:
            at = len(self._start) + self._checked * self._stride
            new = np.ndarray(
                (complete - self._checked, width), np.uint8, self.received, at, (self._stride, 1)
            )
            if not (new == np.frombuffer(self._head, np.uint8)).all():
                return False
            self._checked = complete
        begun = self.received[len(self._start) + complete * self._stride : len(self._start) + end]
        return self._head.startswith(begun)
