"""`Engine` and `JobLogs` in memory."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from flywheel_common.ray.errors import EngineRefused, EngineUnavailable
from flywheel_job.job_logs.chunks import LogPart, whole_lines
from flywheel_trainer.jobs.engine import EngineJob, EngineState, ListedJob
from flywheel_trainer.jobs.job import JobName
from flywheel_trainer.jobs.resources import Node

Program = Callable[[Mapping[str, str]], tuple[str, int | None]]
"""Maps a command's environment to (output, exit status); status None: it runs until it is stopped."""


@dataclass(frozen=True)
class StartedJob:
    """A job with what it was started with."""

    job: EngineJob
    log: bytes = b""
    owner: str = ""
    command: str = ""
    environment: Mapping[str, str] | None = None
    ended_at: datetime | None = None


class MemoryEngine:
    """`Engine` that runs a job within `submit`, except for programs that run until they are stopped.

    `programs` maps commands to what they do; any other command fails, as in a shell. While `down` is set, no
    method answers. Several engines with one dictionary `cluster` are installations that share a cluster.
    """

    def __init__(
        self,
        programs: Mapping[str, Program] | None = None,
        *,
        owner: str = "",
        cluster: dict[str, StartedJob] | None = None,
    ) -> None:
        self.programs = dict(programs or {})
        self.owner = owner
        self.down = False
        self.refuses = ""
        """Message of the refusal of every submission; empty: it accepts them."""
        self.machines: list[Node] = []
        self.started: dict[str, StartedJob] = {} if cluster is None else cluster

    async def submit(self, job_id: str, command: str, environment: Mapping[str, str]) -> None:
        self._check_up()
        if job_id in self.started:
            return
        if self.refuses:
            raise EngineRefused(self.refuses)
        program = self.programs.get(command)
        log, status = program(environment) if program else (f"{shlex.split(command)[0]}: not found\n", 127)
        match status:
            case None:
                job = EngineJob(EngineState.RUNNING)
            case 0:
                job = EngineJob(EngineState.SUCCEEDED, exit_code=0)
            case _:
                job = EngineJob(EngineState.FAILED, f"The command ended with {status}.", status)
        self.started[job_id] = StartedJob(job, log.encode(), self.owner, command, dict(environment))

    async def state(self, job_id: str) -> EngineJob:
        self._check_up()
        known = self.started.get(job_id)
        return EngineJob(EngineState.UNKNOWN) if known is None else known.job

    async def stop(self, job_id: str) -> None:
        self._check_up()
        known = self.started.get(job_id)
        if known is not None and known.job.state in (EngineState.RUNNING, EngineState.UNRECOGNIZED):
            self.becomes(job_id, EngineJob(EngineState.STOPPED))

    async def log_tail(self, job_id: str, max_bytes: int) -> bytes:
        self._check_up()
        known = self.started.get(job_id)
        return b"" if known is None else known.log[-max_bytes:]

    async def jobs(self) -> Sequence[ListedJob]:
        self._check_up()
        return [
            ListedJob(job_id, known.job.state, known.ended_at)
            for job_id, known in self.started.items()
            if known.owner == self.owner
        ]

    async def forget(self, job_id: str) -> None:
        self._check_up()
        self.started.pop(job_id, None)

    async def nodes(self) -> Sequence[Node]:
        self._check_up()
        return list(self.machines)

    def becomes(self, job_id: str, job: EngineJob, *, log: bytes | None = None) -> None:
        """Change the state of a job, and its log unless None."""
        known = self.started[job_id]
        self.started[job_id] = replace(known, job=job, log=known.log if log is None else log)

    def lose_everything(self) -> None:
        """Lose all jobs, as an engine whose head was restarted."""
        self.started.clear()

    def _check_up(self) -> None:
        if self.down:
            raise EngineUnavailable("The engine does not answer.")


class MemoryJobLogs:
    """`JobLogs` from the dictionary `texts`, by job and stream."""

    def __init__(self) -> None:
        self.texts: dict[tuple[JobName, str], bytes] = {}

    async def read(self, job: JobName, stream: str, offset: int, *, ended: bool) -> LogPart:
        data = whole_lines(self.texts.get((job, stream), b"")[offset:], ended=ended)
        return LogPart(data, offset + len(data))
