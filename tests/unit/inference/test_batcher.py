"""Tests of the batcher: each caller gets the result of its own item, or Expired at its own deadline."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel_inference.batching.batcher import Batcher, Entry, Expired
from tests.support.eventually import eventually


def soon() -> float:
    return asyncio.get_running_loop().time() + 5.0


async def squares(batch: list[Entry[int, int]]) -> list[int | Exception]:
    return [entry.item**2 for entry in batch]


async def test_items_submitted_together_share_a_batch() -> None:
    sizes = []

    async def run(batch: list[Entry[int, int]]) -> list[int | Exception]:
        sizes.append(len(batch))
        return await squares(batch)

    batcher = Batcher(run)
    assert await asyncio.gather(*(batcher.submit(i, soon()) for i in range(10))) == [i * i for i in range(10)]
    assert sizes == [10]
    assert batcher.idle


async def test_an_idle_batcher_sends_at_once_and_then_collects() -> None:
    gates: list[asyncio.Event] = []
    sizes: list[int] = []

    async def run(batch: list[Entry[int, int]]) -> list[int | Exception]:
        gates.append(asyncio.Event())
        sizes.append(len(batch))
        await gates[-1].wait()
        return await squares(batch)

    batcher = Batcher(run, stall_seconds=60)
    first = batcher.submit(1, soon())
    await eventually(lambda: sizes == [1])
    rest = [batcher.submit(i, soon()) for i in (2, 3, 4)]
    await asyncio.sleep(0.01)  # Time in which a second batch would start.
    assert sizes == [1] and batcher.waiting == 3
    gates[0].set()
    assert await first == 1
    await eventually(lambda: sizes == [1, 3])
    gates[1].set()
    assert await asyncio.gather(*rest) == [4, 9, 16]


async def test_batches_hold_at_most_max_rows() -> None:
    sizes = []

    async def run(batch: list[Entry[int, int]]) -> list[int | Exception]:
        sizes.append(len(batch))
        return await squares(batch)

    batcher = Batcher(run, max_rows=4)
    await asyncio.gather(*(batcher.submit(i, soon()) for i in range(10)))
    assert sizes == [4, 4, 2]


async def test_a_stalled_batch_frees_its_slot_up_to_max_slots() -> None:
    gate = asyncio.Event()
    running = 0
    most = 0

    async def run(batch: list[Entry[int, int]]) -> list[int | Exception]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if batch[0].item < 10:
            await gate.wait()
        running -= 1
        return await squares(batch)

    batcher = Batcher(run, stall_seconds=0.02, max_slots=3)
    stalled = []
    for count, item in enumerate((1, 2), 1):
        stalled.append(batcher.submit(item, soon()))
        await eventually(lambda count=count: running == count)
    assert await batcher.submit(20, soon()) == 400
    stalled.append(batcher.submit(3, soon()))
    await eventually(lambda: running == 3)
    fourth = batcher.submit(30, soon())
    await asyncio.sleep(0.05)  # The third batch stalls, too.
    assert not fourth.done() and most == 3
    gate.set()
    assert await asyncio.gather(*stalled, fourth) == [1, 4, 9, 900]


async def test_each_caller_expires_at_its_own_deadline() -> None:
    done = asyncio.Event()

    async def run(batch: list[Entry[int, int]]) -> list[int | Exception]:
        await done.wait()
        return await squares(batch)

    batcher = Batcher(run)
    loop = asyncio.get_running_loop()
    short, long = batcher.submit(2, loop.time() + 0.02), batcher.submit(3, loop.time() + 5)
    with pytest.raises(Expired):
        await short
    assert not long.done()
    done.set()
    assert await long == 9


async def test_expired_and_cancelled_items_are_not_sent() -> None:
    gate = asyncio.Event()
    seen: list[int] = []

    async def run(batch: list[Entry[int, int]]) -> list[int | Exception]:
        seen.extend(entry.item for entry in batch)
        await gate.wait()
        return await squares(batch)

    batcher = Batcher(run, stall_seconds=60)
    loop = asyncio.get_running_loop()
    first = batcher.submit(1, soon())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    expired, cancelled, kept = (
        batcher.submit(2, loop.time() + 0.01),
        batcher.submit(3, soon()),
        batcher.submit(4, soon()),
    )
    assert batcher.waiting == 3
    cancelled.cancel()
    with pytest.raises(Expired):
        await expired
    assert batcher.waiting == 1, "only items whose callers wait count"
    gate.set()
    assert await asyncio.gather(first, kept) == [1, 16]
    assert seen == [1, 4]


async def test_batches_hold_at_most_max_bytes_and_a_larger_item_is_alone() -> None:
    batches = []

    async def run(batch: list[Entry[int, int]]) -> list[int | Exception]:
        batches.append([entry.item for entry in batch])
        return await squares(batch)

    batcher = Batcher(run, max_bytes=10, size_of=lambda item: item)
    await asyncio.gather(*(batcher.submit(i, soon()) for i in (4, 5, 2, 30, 1, 9, 1)))
    assert batches == [[4, 5], [2], [30], [1, 9], [1]]


async def test_a_failed_batch_fails_all_its_callers_but_not_the_next_batch() -> None:
    async def run(batch: list[Entry[int, int]]) -> list[int | Exception]:
        if batch[0].item == 0:
            raise OSError("down")
        return (await squares(batch))[: 1 if batch[0].item == 100 else None]

    batcher = Batcher(run)
    failed = await asyncio.gather(*(batcher.submit(i, soon()) for i in range(3)), return_exceptions=True)
    assert [type(f) for f in failed] == [OSError] * 3
    short = await asyncio.gather(*(batcher.submit(i, soon()) for i in (100, 101)), return_exceptions=True)
    assert [type(s) for s in short] == [RuntimeError] * 2
    assert await batcher.submit(7, soon()) == 49


async def test_close_finishes_accepted_items_and_refuses_new_ones() -> None:
    batcher = Batcher(squares)
    waiting = batcher.submit(5, soon())
    await batcher.close()
    assert waiting.result() == 25
    with pytest.raises(RuntimeError):
        batcher.submit(6, soon())


STEP = st.tuples(
    st.integers(0, 3),  # iterations of the loop before the item is submitted
    st.sampled_from(["answer", "fail", "cancel", "expire"]),
)


@settings(max_examples=150, deadline=None)
@given(
    steps=st.lists(STEP, min_size=1, max_size=40),
    delays=st.lists(st.integers(0, 4), min_size=1, max_size=10),
    max_rows=st.integers(1, 8),
    slots=st.integers(1, 3),
)
def test_any_interleaving_reiterations_each_caller_its_own_result(
    steps: list[tuple[int, str]], delays: list[int], max_rows: int, slots: int
) -> None:
    async def scenario() -> None:
        batches = 0

        async def run(batch: list[Entry[Any, Any]]) -> list[Any]:
            nonlocal batches
            pause = delays[batches % len(delays)]
            batches += 1
            for _ in range(pause):
                await asyncio.sleep(0)
            assert len(batch) <= max_rows
            return [
                ValueError(n) if kind == "fail" else (n, "answered") for n, kind in (e.item for e in batch)
            ]

        batcher: Batcher[Any, Any] = Batcher(run, max_rows=max_rows, slots=slots)
        loop = asyncio.get_running_loop()
        futures = []
        for number, (iterations, kind) in enumerate(steps):
            for _ in range(iterations):
                await asyncio.sleep(0)
            future = batcher.submit((number, kind), loop.time() + (-1.0 if kind == "expire" else 30.0))
            futures.append(future)
            if kind == "cancel":
                loop.call_soon(future.cancel)
        results = await asyncio.gather(*futures, return_exceptions=True)
        for number, ((_, kind), result) in enumerate(zip(steps, results, strict=True)):
            if kind == "answer":
                assert result == (number, "answered")
            elif kind == "fail":
                assert isinstance(result, ValueError) and result.args == (number,)
            elif kind == "cancel":
                assert isinstance(result, asyncio.CancelledError) or result == (number, "answered")
            else:
                assert isinstance(result, Expired) or result == (number, "answered")
        await batcher.close()
        assert batcher.idle

    asyncio.run(scenario())
