"""Who waits for something that is away hears of it before the deadline, and only then."""

from __future__ import annotations

import asyncio

import pytest

from flywheel_common.deadline import budget, in_time, left_seconds
from flywheel_common.errors import Unavailable


def away() -> Unavailable:
    return Unavailable("It does not answer.", reason="AWAY")


async def test_a_block_that_would_outlast_the_deadline_says_what_is_away_before_it() -> None:
    with budget(0.6):
        with pytest.raises(Unavailable) as late:
            async with in_time(away):
                await asyncio.Event().wait()
        left = left_seconds()
    assert "AWAY" == late.value.reason
    assert left is not None and left > 0


async def test_with_little_left_half_of_it_is_kept_for_the_answer() -> None:
    with budget(0.1):
        with pytest.raises(Unavailable):
            async with in_time(away):
                await asyncio.Event().wait()
        left = left_seconds()
    assert left is not None and left > 0


async def test_what_is_done_in_time_is_done_and_its_own_errors_pass() -> None:
    with budget(5.0):
        async with in_time(away):
            await asyncio.sleep(0)
        with pytest.raises(TimeoutError):
            async with in_time(away):
                raise TimeoutError
    async with in_time(away):
        await asyncio.sleep(0)
