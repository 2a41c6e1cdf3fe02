"""The compute engine that runs attempts of jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from flywheel_trainer.jobs.resources import Node


class EngineState(StrEnum):
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    STOPPED = "STOPPED"
    UNKNOWN = "UNKNOWN"
    """The engine does not know the job: it was never submitted, or the engine lost its state."""
    UNRECOGNIZED = "UNRECOGNIZED"
    """The engine reports a state that this version does not know; the job counts as not ended."""


ENDED_ON_ENGINE = frozenset(
    {EngineState.SUCCEEDED, EngineState.FAILED, EngineState.STOPPED, EngineState.UNKNOWN}
)


@dataclass(frozen=True)
class EngineJob:
    """State of a job on the engine, with a message for people."""

    state: EngineState
    message: str = ""
    exit_code: int | None = None
    """Of the command; negative or above 128 if a signal ended it."""
    machine_lost: bool = False
    """Whether it FAILED because the engine lost the process or the machine that ran it."""


@dataclass(frozen=True)
class ListedJob:
    """A job of this installation on the engine."""

    job_id: str
    state: EngineState
    ended_at: datetime | None = None


class Engine(Protocol):
    """Runs one group of processes per job id.

    - `submit` of a known id changes nothing. Raises EngineRefused if the engine will never accept the job.
      After EngineUnavailable the job may start later.
    - `stop` requests the end of all processes of a job; its state becomes STOPPED when they have ended. A job
      that has ended or is unknown does not change.
    - `log_tail` returns at most the last `max_bytes` of what the command printed on the engine, in which
      lines of the engine itself may occur; it is empty for an unknown job, and if the engine cannot read it.
    - `jobs` returns the jobs that this installation submitted. Several installations can share an engine.
    - `forget` removes the record of a job that has ended; an unknown id changes nothing.
    - `nodes` returns the machines of the cluster; empty if the engine does not know them yet.

    Every method raises EngineUnavailable if the engine does not answer.
    """

    async def submit(self, job_id: str, command: str, environment: Mapping[str, str]) -> None: ...

    async def state(self, job_id: str) -> EngineJob: ...

    async def stop(self, job_id: str) -> None: ...

    async def log_tail(self, job_id: str, max_bytes: int) -> bytes: ...

    async def jobs(self) -> Sequence[ListedJob]: ...

    async def forget(self, job_id: str) -> None: ...

    async def nodes(self) -> Sequence[Node]: ...
