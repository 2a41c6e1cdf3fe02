"""Keeps the memory of freed messages, because new pages cost more than the message itself (ADR 0100)."""

from __future__ import annotations

import ctypes

KEPT_BYTES = 64 * 1024 * 1024
"""Freed memory that the process keeps at most: gRPC copies a message of up to 8 MiB twice, and several may
come at once."""
LARGEST_BLOCK_BYTES = 32 * 1024 * 1024
"""Larger blocks go back to the system at once; glibc accepts no higher limit."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> bool:
    """Lets the allocator of this process keep up to KEPT_BYTES of freed memory. False if it is not glibc's.

    Without it, the allocator returns the pages of a large message and gets new ones for the next, which the
    kernel clears: three quarters of the time that the message takes, during which the event loop answers
    nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_THRESHOLD, LARGEST_BLOCK_BYTES) and mallopt(_TRIM_THRESHOLD, KEPT_BYTES))
