"""TaskGroup: a failed task leaves no request to cancel behind."""

from __future__ import annotations

import ast
import asyncio

import pytest

from flywheel_common.tasks import TaskGroup
from tests.support.product_sources import product_files


class Failed(Exception):
    pass


async def fails(seconds: float) -> None:
    await asyncio.sleep(seconds)
    raise Failed


def requests_to_cancel() -> int:
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling()


async def test_a_task_that_fails_at_the_end_leaves_no_request_to_cancel() -> None:
    for _ in range(3):
        with pytest.raises(ExceptionGroup) as caught:
            async with TaskGroup() as group:
                group.create_task(fails(0.01))
                group.create_task(asyncio.sleep(60))
        assert [Failed] == [type(e) for e in caught.value.exceptions]
        assert 0 == requests_to_cancel()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await asyncio.sleep(60)


async def test_a_task_that_fails_within_the_block_ends_it() -> None:
    with pytest.raises(ExceptionGroup):
        async with TaskGroup() as group:
            group.create_task(fails(0.0))
            await asyncio.sleep(60)
    assert 0 == requests_to_cancel()


@pytest.mark.parametrize("waits_in_block", [True, False])
async def test_a_cancelled_task_stays_cancelled(waits_in_block: bool) -> None:
    ended: list[int] = []

    async def grouped() -> None:
        try:
            async with TaskGroup() as group:
                group.create_task(asyncio.sleep(60))
                if waits_in_block:
                    await asyncio.sleep(60)
        finally:
            ended.append(requests_to_cancel())

    task = asyncio.create_task(grouped())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [1] == ended


async def test_an_expired_timeout_around_a_group_is_a_timeout() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01), TaskGroup() as group:
            group.create_task(asyncio.sleep(60))
    assert 0 == requests_to_cancel()


def test_the_product_uses_no_other_group() -> None:
    found = [
        f"{path}:{node.lineno}"
        for path in product_files()
        if path.name != "tasks.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "TaskGroup"
    ]
    assert [] == found
