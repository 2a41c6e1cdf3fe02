"""A trigger that waits in Airflow's triggerer, so that no worker slot is held."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent
from tenacity import AsyncRetrying, retry_if_exception, stop_after_delay, wait_exponential

from flywheel_airflow.hook import FlywheelHook
from flywheel_airflow.work import cancellation, has_ended, passes, read_async


class FlywheelTrigger(BaseTrigger):
    """Fires when a job or pipeline run has ended, with its name. A user who stops the task cancels it."""

    def __init__(
        self, name: str, flywheel_conn_id: str, poll_seconds: float = 5.0, outage_seconds: float = 600.0
    ) -> None:
        super().__init__()
        self.name, self.flywheel_conn_id = name, flywheel_conn_id
        self.poll_seconds, self.outage_seconds = poll_seconds, outage_seconds

    def serialize(self) -> tuple[str, dict[str, Any]]:
        fields = ("name", "flywheel_conn_id", "poll_seconds", "outage_seconds")
        return "flywheel_airflow.triggers.FlywheelTrigger", {field: getattr(self, field) for field in fields}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        async with await FlywheelHook(self.flywheel_conn_id).client() as client:
            while True:
                async for attempt in AsyncRetrying(
                    retry=retry_if_exception(passes),
                    stop=stop_after_delay(self.outage_seconds),
                    wait=wait_exponential(max=self.poll_seconds),
                    reraise=True,
                ):
                    with attempt:
                        work = await read_async(client, self.name)
                if has_ended(work):
                    yield TriggerEvent({"name": self.name})
                    return
                await asyncio.sleep(self.poll_seconds)

    async def on_kill(self) -> None:
        """Cancel the job or pipeline run."""
        async with await FlywheelHook(self.flywheel_conn_id).client() as client:
            await cancellation(client, self.name)
