"""Blocks that are interrupted shortly before the deadline of the running call."""

from __future__ import annotations

import asyncio

import pytest

from flywheel_common.deadline import budget, in_time, left_seconds
from flywheel_common.errors import Unavailable


class BackendUnavailable(Unavailable):
    reason = "BACKEND_UNAVAILABLE"


def late() -> Unavailable:
    return BackendUnavailable("It does not answer.")


async def test_a_block_is_interrupted_before_the_deadline() -> None:
    with budget(0.6):
        with pytest.raises(Unavailable) as caught:
            async with in_time(late):
                await asyncio.Event().wait()
        left = left_seconds()
    assert "BACKEND_UNAVAILABLE" == caught.value.reason
    assert left is not None and left > 0


async def test_a_short_deadline_keeps_half_for_the_response() -> None:
    with budget(0.1):
        with pytest.raises(Unavailable):
            async with in_time(late):
                await asyncio.Event().wait()
        left = left_seconds()
    assert left is not None and left > 0


async def test_a_block_within_the_deadline_is_not_changed() -> None:
    with budget(5.0):
        async with in_time(late):
            await asyncio.sleep(0)
        with pytest.raises(TimeoutError):
            async with in_time(late):
                raise TimeoutError
    async with in_time(late):
        await asyncio.sleep(0)
