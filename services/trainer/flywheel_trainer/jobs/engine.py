"""The compute engine that runs jobs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class EngineState(StrEnum):
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    STOPPED = "STOPPED"
    UNKNOWN = "UNKNOWN"
    """The engine does not know the job: it was never submitted, or the engine lost its state."""


ENDED_ON_ENGINE = frozenset(
    {EngineState.SUCCEEDED, EngineState.FAILED, EngineState.STOPPED, EngineState.UNKNOWN}
)


@dataclass(frozen=True)
class EngineJob:
    """State of a job on the engine, with a message for people."""

    state: EngineState
    message: str = ""


class Engine(Protocol):
    """Runs one group of processes per job id.

    - `submit` of a known id changes nothing.
    - `stop` requests the end of all processes of a job; its state becomes STOPPED when they have ended. A job
      that has ended or is unknown does not change.
    - `log` returns the complete log so far, in which lines of the engine itself may occur; it is empty for an
      unknown job.

    Every method raises EngineUnavailable if the engine does not answer.
    """

    async def submit(self, job_id: str, command: str, environment: Mapping[str, str]) -> None: ...

    async def state(self, job_id: str) -> EngineJob: ...

    async def stop(self, job_id: str) -> None: ...

    async def log(self, job_id: str) -> bytes: ...
