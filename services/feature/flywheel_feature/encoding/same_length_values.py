"""Values of the same length (rows of numbers), kept in the piece of memory in which Redis sends them.

A reply of 1,600 rows is 700 KB. A parser copies it and makes an object of every value, and the decoder joins
them again. Here the bytes stay where they were received; consecutive values are one stride apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import numpy as np
import numpy.typing as npt

MANY = 64
"""Number of values from which this is faster than a list."""
_LONGEST_HEAD = 32
"""Bytes within which the head of a value must end."""


class SameLengthValues(Sequence[bytes]):
    """`count` values of `size` bytes, the first at `first`, each next one `stride` bytes later."""

    def __init__(self, piece: bytearray, first: int, size: int, stride: int, count: int) -> None:
        self._piece, self._first, self._stride, self._count = piece, first, stride, count
        self.size = size

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> SameLengthValues: ...
    def __getitem__(self, index: int | slice) -> bytes | SameLengthValues:
        if isinstance(index, slice):
            low, high, step = index.indices(self._count)
            first, stride = self._first + low * self._stride, step * self._stride
            return SameLengthValues(self._piece, first, self.size, stride, len(range(low, high, step)))
        if not -self._count <= index < self._count:
            raise IndexError(index)
        at = self._first + index % self._count * self._stride
        return bytes(self._piece[at : at + self.size])

    @property
    def matrix(self) -> npt.NDArray[np.uint8]:
        """[values, size], a view."""
        return np.ndarray((self._count, self.size), np.uint8, self._piece, self._first, (self._stride, 1))


class SameLengthReply:
    """Collects the reply to an MGET of `count` keys while it consists of values of the same length."""

    def __init__(self, count: int) -> None:
        self.received = bytearray()
        self.length = 0
        """Bytes of the complete reply; 0: not known yet."""
        self._count = count
        self._start = b"*%d\r\n" % count
        self._head = b""
        self._stride = 0
        self._checked = 0

    def add(self, data: bytes) -> bool:
        """False when the reply has another form; `received` must then go to a parser."""
        self.received += data
        if not self.length and not self._read_first_head():
            return False
        return not self.length or self._heads_are_equal()

    @property
    def complete(self) -> bool:
        return 0 < self.length <= len(self.received)

    @property
    def rest(self) -> bytes:
        """The bytes received after the reply."""
        return bytes(self.received[self.length :])

    @property
    def values(self) -> SameLengthValues:
        """The values of a complete reply."""
        first = len(self._start) + len(self._head)
        return SameLengthValues(
            self.received, first, self._stride - len(self._head) - 2, self._stride, self._count
        )

    def _read_first_head(self) -> bool:
        """Read the head of the first value; False when the reply does not begin with a value."""
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

    def _heads_are_equal(self) -> bool:
        """Whether every value received so far has the head, and thus the length, of the first one."""
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
