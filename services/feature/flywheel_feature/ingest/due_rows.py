"""Picks up rows of batch views when they become valid: submits a materialization for each view that has some.

Such rows were read before, from tables or pushes, and their files are remembered (`SeenFiles.due`). All
replicas may run this: jobs are submitted with a request id that follows from the view and the time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from flywheel_common.clock import Clock
from flywheel_common.errors import FlywheelError
from flywheel_common.telemetry.logs import get_logger
from flywheel_common.value import micros
from flywheel_feature.definitions.catalog import Catalog
from flywheel_feature.ingest.materialize_job import KIND, MaterializeRequest
from flywheel_feature.jobs.model import Job
from flywheel_feature.tables.ports import SeenFiles

log = get_logger(__name__)

POLL_SECONDS = 2.0
RETRY_SECONDS = 3600
"""A view whose rows are still not online, because its job failed, gets another job after this time."""


class Submit(Protocol):
    """Queues a job (jobs/runner.py)."""

    async def __call__(self, kind: str, request: bytes, request_id: str, *, project: str) -> Job: ...


class DueRows:
    """Submits MATERIALIZE jobs for the rows that have become valid."""

    def __init__(
        self, seen: SeenFiles, submit: Submit, projects: Callable[[], Iterable[Catalog]], clock: Clock
    ) -> None:
        self._seen = seen
        self._submit = submit
        self._projects = projects
        self._clock = clock

    async def run(self) -> None:
        """Submit until cancelled."""
        while True:
            try:
                await self.submit()
            except FlywheelError as error:
                log.warning("rows that have become valid are not picked up yet", reason=error.reason)
            await self._clock.sleep(POLL_SECONDS)

    async def submit(self) -> int:
        """Submit the jobs that are due now; returns for how many views. Repeating it submits none twice."""
        now = micros(self._clock.now())
        due = await self._seen.due(now)
        if not due:
            return 0
        wanted: dict[tuple[str, str], int] = {}
        for catalog in self._projects():
            for view in catalog.live_views():
                time = due.get((view.project, view.id, view.version))
                if time is not None:
                    key = view.project, view.id
                    wanted[key] = min(time, wanted.get(key, time))
        attempt = now // (RETRY_SECONDS * 1_000_000)
        for (project, view_id), time in wanted.items():
            request = MaterializeRequest(project, view_id, due_only=True)
            request_id = f"due-rows/{view_id}/{time}/{attempt}"
            await self._submit(KIND, request.dump(), request_id, project=project)
        return len(wanted)
