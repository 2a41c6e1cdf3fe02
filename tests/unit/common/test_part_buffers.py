"""Buffers for the parts of streams: turns, slow streams, and failures."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from flywheel_common.storage.errors import StreamTooSlow
from flywheel_common.storage.part_buffers import PART_BYTES, PartBuffers

CHUNK = bytes(PART_BYTES // 5)


async def chunks(count: int, seconds: float = 0.0) -> AsyncIterator[bytes]:
    for _ in range(count):
        await asyncio.sleep(seconds)
        yield CHUNK


async def read(buffers: PartBuffers, source: AsyncIterator[bytes], turns: list[str], name: str = "") -> int:
    """Read a stream as a store does and return its size; `turns` gets its name for each part."""
    size, ended = 0, False
    while not ended:
        body, ended = await buffers.filled(source)
        size += len(body)
        turns.append(name)
        await asyncio.sleep(0)
        buffers.give_back()
    return size


async def test_streams_take_turns_part_by_part() -> None:
    buffers, turns = PartBuffers(1), list[str]()
    sizes = await asyncio.gather(*(read(buffers, chunks(12), turns, name) for name in "abc"))
    assert [12 * len(CHUNK)] * 3 == sizes
    assert list("abcabcabc") == turns


async def test_slow_streams_fail_while_another_waits() -> None:
    buffers, turns = PartBuffers(2, fill_seconds=0.2), list[str]()
    slow = [asyncio.create_task(read(buffers, chunks(99, 1.0), turns, "slow")) for _ in range(2)]
    await asyncio.sleep(0.05)
    async with asyncio.timeout(5):
        assert 50 * len(CHUNK) == await read(buffers, chunks(50), turns, "fast")
    # One buffer was enough for the other stream, and nothing waits any more.
    ended = [task.exception() for task in slow if task.done()]
    assert ended
    assert all(isinstance(error, StreamTooSlow) for error in ended)
    for task in slow:
        task.cancel()
    await asyncio.gather(*slow, return_exceptions=True)
    assert 5 * len(CHUNK) == await read(buffers, chunks(5), turns)


async def test_a_slow_stream_goes_on_while_nothing_waits() -> None:
    buffers = PartBuffers(1, fill_seconds=0.05)
    assert 3 * len(CHUNK) == await read(buffers, chunks(3, 0.3), [])


async def test_a_failed_source_gives_its_buffer_back() -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield CHUNK
        raise RuntimeError("disconnected")

    buffers = PartBuffers(1)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="disconnected"):
            await buffers.filled(broken())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await buffers.filled(chunks(1, 10.0))
    assert len(CHUNK) == await read(buffers, chunks(1), [])
