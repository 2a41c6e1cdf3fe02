"""Bytes as a stream of pieces."""

from __future__ import annotations

from collections.abc import AsyncIterator


async def pieces(data: bytes, *, ends_with: Exception | None = None) -> AsyncIterator[bytes]:
    """Two halves of the data; `ends_with` is raised after them."""
    yield data[: len(data) // 2]
    yield data[len(data) // 2 :]
    if ends_with is not None:
        raise ends_with
