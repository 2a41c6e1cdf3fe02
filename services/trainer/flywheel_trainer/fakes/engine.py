"""`Engine` and `JobLogs` in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from flywheel_common.ray.errors import EngineUnavailable
from flywheel_trainer.jobs.engine import EngineJob, EngineState
from flywheel_trainer.jobs.job import JobName

Program = Callable[[Mapping[str, str]], tuple[str, int | None]]
"""Maps a command's environment to (output, exit status); status None: it runs until it is stopped."""


@dataclass(frozen=True)
class _StartedJob:
    job: EngineJob
    log: str = ""


class MemoryEngine:
    """`Engine` that runs a job within `submit`, except for programs that run until they are stopped.

    `programs` maps commands to what they do; any other command fails, as in a shell. While `down` is set, no
    method answers.
    """

    def __init__(self, programs: Mapping[str, Program] | None = None) -> None:
        self.programs = dict(programs or {})
        self.down = False
        self._jobs: dict[str, _StartedJob] = {}

    async def submit(self, job_id: str, command: str, environment: Mapping[str, str]) -> None:
        self._check_up()
        if job_id in self._jobs:
            return
        program = self.programs.get(command)
        log, status = program(environment) if program else (f"{command}: not found\n", 127)
        match status:
            case None:
                job = EngineJob(EngineState.RUNNING)
            case 0:
                job = EngineJob(EngineState.SUCCEEDED)
            case _:
                job = EngineJob(EngineState.FAILED, f"The command ended with {status}.")
        self._jobs[job_id] = _StartedJob(job, log)

    async def state(self, job_id: str) -> EngineJob:
        self._check_up()
        known = self._jobs.get(job_id)
        return EngineJob(EngineState.UNKNOWN) if known is None else known.job

    async def stop(self, job_id: str) -> None:
        self._check_up()
        known = self._jobs.get(job_id)
        if known is not None and known.job.state is EngineState.RUNNING:
            self._jobs[job_id] = replace(known, job=EngineJob(EngineState.STOPPED))

    async def log(self, job_id: str) -> bytes:
        self._check_up()
        known = self._jobs.get(job_id)
        return b"" if known is None else known.log.encode()

    def forget(self) -> None:
        """Lose all jobs, as an engine whose machine is lost."""
        self._jobs.clear()

    def _check_up(self) -> None:
        if self.down:
            raise EngineUnavailable("The engine does not answer.")


class MemoryJobLogs:
    """`JobLogs` from the dictionary `texts`."""

    def __init__(self) -> None:
        self.texts: dict[JobName, bytes] = {}

    async def read(self, job: JobName) -> bytes:
        return self.texts.get(job, b"")
