"""Whatever arrives in whatever order: each caller gets the answer to its own item, at the latest by its own deadline."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel_inference.batching.batcher import BadBatch, Coalescer, Entry, Expired


def soon() -> float:
    return asyncio.get_running_loop().time() + 5.0


async def squares(batch: list[Entry[int, int]]) -> list[int | Exception]:
    return [entry.item**2 for entry in batch]


async def test_what_arrives_in_one_turn_shares_a_batch() -> None:
    sizes = []

    async def run(batch: list[Entry[int, int]]) -> list[int | Exception]:
        sizes.append(len(batch))
        return await squares(batch)

    coalescer = Coalescer(run)
    assert await asyncio.gather(*(coalescer.submit(i, soon()) for i in range(10))) == [
        i * i for i in range(10)
    ]
    assert sizes == [10]
    assert coalescer.idle


async def test_an_idle_coalescer_sends_at_once_and_the_rest_waits_for_the_batch_that_is_out() -> None:
    gates: list[asyncio.Event] = []
    sizes: list[int] = []

    async def run(batch: list[Entry[int, int]]) -> list[int | Exception]:
        gates.append(asyncio.Event())
        sizes.append(len(batch))
        await gates[-1].wait()
        return await squares(batch)

    coalescer = Coalescer(run, stall_seconds=60)
    first = coalescer.submit(1, soon())
    await asyncio.sleep(0.01)
    rest = [coalescer.submit(i, soon()) for i in (2, 3, 4)]
    await asyncio.sleep(0.01)
    assert sizes == [1] and coalescer.waiting == 3
    gates[0].set()
    assert await first == 1
    await asyncio.sleep(0.01)
    assert sizes == [1, 3]
    gates[1].set()
    assert await asyncio.gather(*rest) == [4, 9, 16]


async def test_batches_hold_at_most_max_rows() -> None:
    sizes = []

    async def run(batch: list[Entry[int, int]]) -> list[int | Exception]:
        sizes.append(len(batch))
        return await squares(batch)

    coalescer = Coalescer(run, max_rows=4)
    await asyncio.gather(*(coalescer.submit(i, soon()) for i in range(10)))
    assert sizes == [4, 4, 2]


async def test_a_stalled_batch_lets_the_next_one_go_and_slots_are_bounded() -> None:
    stuck = asyncio.Event()
    out = 0
    most = 0

    async def run(batch: list[Entry[int, int]]) -> list[int | Exception]:
        nonlocal out, most
        out += 1
        most = max(most, out)
        if batch[0].item < 10:
            await stuck.wait()
        out -= 1
        return await squares(batch)

    coalescer = Coalescer(run, stall_seconds=0.02, max_slots=3)
    held = []
    for item in (1, 2):
        held.append(coalescer.submit(item, soon()))
        await asyncio.sleep(0.03)
    assert await coalescer.submit(20, soon()) == 400
    held.append(coalescer.submit(3, soon()))
    await asyncio.sleep(0.05)
    fourth = coalescer.submit(30, soon())
    await asyncio.sleep(0.05)
    assert not fourth.done() and most == 3
    stuck.set()
    assert await asyncio.gather(*held, fourth) == [1, 4, 9, 900]


async def test_each_caller_expires_at_its_own_deadline_while_the_batch_goes_on() -> None:
    done = asyncio.Event()

    async def run(batch: list[Entry[int, int]]) -> list[int | Exception]:
        await done.wait()
        return await squares(batch)

    coalescer = Coalescer(run)
    loop = asyncio.get_running_loop()
    hurried, patient = coalescer.submit(2, loop.time() + 0.02), coalescer.submit(3, loop.time() + 5)
    with pytest.raises(Expired):
        await hurried
    assert not patient.done()
    done.set()
    assert await patient == 9


async def test_who_expired_or_left_while_waiting_is_not_sent() -> None:
    gate = asyncio.Event()
    seen: list[int] = []

    async def run(batch: list[Entry[int, int]]) -> list[int | Exception]:
        seen.extend(entry.item for entry in batch)
        await gate.wait()
        return await squares(batch)

    coalescer = Coalescer(run, stall_seconds=60)
    loop = asyncio.get_running_loop()
    first = coalescer.submit(1, soon())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    expired, left, stays = (
        coalescer.submit(2, loop.time() + 0.01),
        coalescer.submit(3, soon()),
        coalescer.submit(4, soon()),
    )
    left.cancel()
    with pytest.raises(Expired):
        await expired
    gate.set()
    assert await asyncio.gather(first, stays) == [1, 16]
    assert seen == [1, 4]


async def test_a_bad_row_fails_alone() -> None:
    async def run(batch: list[Entry[int, int]]) -> list[int | Exception]:
        if any(entry.item == 13 for entry in batch):
            raise BadBatch(ValueError("13"))
        return await squares(batch)

    coalescer = Coalescer(run)
    answers = await asyncio.gather(*(coalescer.submit(i, soon()) for i in range(40)), return_exceptions=True)
    assert isinstance(answers[13], ValueError)
    assert [a for i, a in enumerate(answers) if i != 13] == [i * i for i in range(40) if i != 13]


async def test_a_batch_that_fails_or_answers_too_few_rows_fails_for_all_its_callers_and_the_next_goes_on() -> (
    None
):
    async def run(batch: list[Entry[int, int]]) -> list[int | Exception]:
        if batch[0].item == 0:
            raise OSError("down")
        return (await squares(batch))[: 1 if batch[0].item == 100 else None]

    coalescer = Coalescer(run)
    failed = await asyncio.gather(*(coalescer.submit(i, soon()) for i in range(3)), return_exceptions=True)
    assert [type(f) for f in failed] == [OSError] * 3
    short = await asyncio.gather(*(coalescer.submit(i, soon()) for i in (100, 101)), return_exceptions=True)
    assert [type(s) for s in short] == [RuntimeError] * 2
    assert await coalescer.submit(7, soon()) == 49


async def test_closing_answers_what_waits_and_refuses_what_is_new() -> None:
    coalescer = Coalescer(squares)
    waiting = coalescer.submit(5, soon())
    await coalescer.close()
    assert waiting.result() == 25
    with pytest.raises(RuntimeError):
        coalescer.submit(6, soon())


STEP = st.tuples(
    st.integers(0, 3),  # turns of the loop to wait before submitting
    st.sampled_from(["answer", "fail", "bad", "cancel", "expire"]),
)


@settings(max_examples=150, deadline=None)
@given(
    steps=st.lists(STEP, min_size=1, max_size=40),
    delays=st.lists(st.integers(0, 4), min_size=1, max_size=10),
    max_rows=st.integers(1, 8),
    slots=st.integers(1, 3),
)
def test_any_interleaving_returns_each_caller_its_own_row(
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
            if any(kind == "bad" for _, kind in (entry.item for entry in batch)):
                raise BadBatch(ValueError(next(n for n, kind in (e.item for e in batch) if kind == "bad")))
            return [
                ValueError(n) if kind == "fail" else (n, "answered") for n, kind in (e.item for e in batch)
            ]

        coalescer: Coalescer[Any, Any] = Coalescer(run, max_rows=max_rows, slots=slots)
        loop = asyncio.get_running_loop()
        futures = []
        for number, (turns, kind) in enumerate(steps):
            for _ in range(turns):
                await asyncio.sleep(0)
            future = coalescer.submit((number, kind), loop.time() + (-1.0 if kind == "expire" else 30.0))
            futures.append(future)
            if kind == "cancel":
                loop.call_soon(future.cancel)
        results = await asyncio.gather(*futures, return_exceptions=True)
        for number, ((_, kind), result) in enumerate(zip(steps, results, strict=True)):
            if kind == "answer":
                assert result == (number, "answered")
            elif kind in ("fail", "bad"):
                assert isinstance(result, ValueError) and result.args == (number,)
            elif kind == "cancel":
                assert isinstance(result, asyncio.CancelledError) or result == (number, "answered")
            else:
                assert isinstance(result, Expired) or result == (number, "answered")
        await coalescer.close()
        assert coalescer.idle

    asyncio.run(scenario())
