"""Id generation as a dependency: ids are unique without coordination and sort by creation time."""

from __future__ import annotations

import os
import threading
import time
from typing import Protocol


class Ids(Protocol):
    """Every call returns a new id. The ids of one process sort in creation order."""

    def new(self) -> str: ...


def uuid7(milliseconds: int, tail: int) -> str:
    """UUID version 7 (RFC 9562): 48 bits of Unix milliseconds, then 74 bits of `tail`."""
    value = (milliseconds & (1 << 48) - 1) << 80 | 0x7 << 76 | (tail >> 62 & 0xFFF) << 64 | 0b10 << 62
    # uuid.UUID takes twice as long, and every prediction gets an id.
    text = f"{value | tail & (1 << 62) - 1:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


class SystemIds:
    """UUIDv7 strings. Within one millisecond the random tail is incremented, which keeps the order."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._millis = 0
        self._tail = 0

    def new(self) -> str:
        with self._lock:
            now = time.time_ns() // 1_000_000
            if now > self._millis:
                self._millis = now
                self._tail = int.from_bytes(os.urandom(10), "big") & (1 << 73) - 1
            else:
                self._tail += 1 + (os.urandom(1)[0])
            return uuid7(self._millis, self._tail)


class SequentialIds:
    """For tests: `prefix-000001`, `prefix-000002`, …"""

    def __init__(self, prefix: str = "id") -> None:
        self._prefix = prefix
        self._count = 0

    def new(self) -> str:
        self._count += 1
        return f"{self._prefix}-{self._count:06d}"


_default = SystemIds()


def new_id() -> str:
    """An id of the process-wide generator, for code without an injected one (event ids, lease holders)."""
    return _default.new()
