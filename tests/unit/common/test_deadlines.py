"""Blocks that are interrupted shortly before the deadline of the running call."""

from __future__ import annotations

import asyncio

import pytest

from flywheel_common.deadline import budget, in_time, left_seconds, seconds_to_answer
from flywheel_common.errors import Unavailable


class BackendUnavailable(Unavailable):
    reason = "BACKEND_UNAVAILABLE"


def late() -> Unavailable:
    return BackendUnavailable("It does not answer.")


@pytest.mark.parametrize("seconds", [0.6, 0.1])
async def test_a_block_that_hangs_is_interrupted(seconds: float) -> None:
    with budget(seconds), pytest.raises(Unavailable) as caught:
        async with in_time(late):
            await asyncio.Event().wait()
    assert "BACKEND_UNAVAILABLE" == caught.value.reason


@pytest.mark.parametrize(("seconds", "reserve"), [(100.0, 0.3), (0.6, 0.3), (0.1, 0.05)])
def test_a_reserve_for_the_response_is_kept(seconds: float, reserve: float) -> None:
    with budget(seconds):
        before = left_seconds()
        wait = seconds_to_answer()
        after = left_seconds()
    assert before is not None and wait is not None and after is not None
    # The clock runs between the calls: `wait` lies between what the two times allow.
    assert max(after - 0.3, after / 2) <= wait <= max(before - 0.3, before / 2)
    assert wait <= seconds - reserve


async def test_a_block_within_the_deadline_is_not_changed() -> None:
    with budget(5.0):
        async with in_time(late):
            await asyncio.sleep(0)
        with pytest.raises(TimeoutError):
            async with in_time(late):
                raise TimeoutError
    async with in_time(late):
        await asyncio.sleep(0)
