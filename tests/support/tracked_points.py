"""A process that logs points while its trainer is killed and started again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np

import flywheel as fw
from tests.support.servers.trainer import TrainerProcess

KEYS = 10
PACE = 100
"""Steps between two pauses."""


async def log_over_an_outage(
    trainer: TrainerProcess,
    spool: Path,
    points: int,
    *,
    away_seconds: float,
    restart: Callable[[], Awaitable[None]],
) -> fw.Run:
    """Log points of KEYS metrics with a run; kill the trainer after a third, and start it later.

    The last third is logged after the outage, and the second one is spread over it.
    """
    steps = points // KEYS
    first, second = steps // 3, 2 * steps // 3
    pause = away_seconds / (second - first) * PACE
    reached = asyncio.Event()
    loop = asyncio.get_running_loop()

    def work() -> fw.Run:
        with fw.run(
            "outage", address=trainer.address, spool=spool, finish_timeout=400.0 + away_seconds
        ) as run:
            for step in range(steps):
                run.log({f"m{key}": step + key / KEYS for key in range(KEYS)}, step=step)
                if step == first:
                    run.flush()
                    loop.call_soon_threadsafe(reached.set)
                if first < step < second and step % PACE == 0:
                    time.sleep(pause)
        return run

    async def fail() -> None:
        await reached.wait()
        trainer.kill()
        await asyncio.sleep(away_seconds)
        await restart()

    async with asyncio.TaskGroup() as group:
        working = group.create_task(asyncio.to_thread(work))
        group.create_task(fail())
    return working.result()


async def check_no_point_is_lost(trainer: TrainerProcess, run: fw.Run, points: int) -> None:
    """Every point reads back with its value."""
    async with fw.Client(run.project, trainer=trainer.address) as client:
        for key in range(KEYS):
            (curve,) = await client.run_curves(run.name, [f"m{key}"])
            steps = np.arange(points // KEYS)
            assert np.array_equal(steps, curve.steps)
            assert np.array_equal(steps + key / KEYS, curve.values)
