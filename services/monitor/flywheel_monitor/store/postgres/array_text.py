"""Arrays as the text that PostgreSQL casts to an array."""

from __future__ import annotations

from collections.abc import Sequence


def array_text(numbers: Sequence[int]) -> str:
    """`{1,2}`. asyncpg encodes the numbers of a list one by one in Python, and has no arrays of arrays of
    different lengths."""
    return f"{{{','.join(map(str, numbers))}}}"
