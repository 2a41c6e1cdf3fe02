"""Runs the trigger of a job in Airflow's runner of triggers for a moment, and ends it.

`kill` is what Airflow does when a user marks the deferred task; `shutdown`, when the triggerer ends.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from typing import Any

from airflow.jobs.triggerer_job_runner import TriggerRunner

WAITS_SECONDS = 1.0
"""The trigger reads the job several times before it is ended."""


async def main(name: str, end: str) -> None:
    runner = TriggerRunner()
    made: type[Any] = runner.get_trigger_by_classpath("flywheel_airflow.triggers.FlywheelTrigger")
    trigger = made(name, "flywheel_default", poll_seconds=0.2)
    runner.triggers[1] = {"name": "late", "events": 0, "is_watcher": False}  # type: ignore[typeddict-item]
    task = asyncio.create_task(runner.run_trigger(1, trigger))
    runner.triggers[1]["task"] = task
    await asyncio.sleep(WAITS_SECONDS)
    if task.done():
        raise SystemExit(f"The trigger has ended: {task}")
    if end == "kill":
        runner.to_cancel.append(1)
        await runner.cancel_triggers()
    else:
        task.cancel("EOF - shutting down")
    with suppress(asyncio.CancelledError):
        await task


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
