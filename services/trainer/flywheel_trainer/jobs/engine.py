"""The compute engine as jobs see it."""

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
    """The engine does not know the job: never submitted, or the engine lost its state."""


@dataclass(frozen=True)
class EngineJob:
    """What the engine says about a job; `message` is for people."""

    state: EngineState
    message: str = ""


class Engine(Protocol):
    """Runs one process group per job id. `submit` of an id it knows changes nothing. `stop` asks for the end of every
    process; the state becomes STOPPED when they are gone; a job that has ended, or is unknown, stays as it is. `log` is
    the whole text so far, with lines of the engine's own among the job's, and empty for an unknown job. Every method
    raises Unavailable ENGINE_UNAVAILABLE when the engine does not answer."""

    async def submit(self, job_id: str, command: str, environment: Mapping[str, str]) -> None: ...

    async def state(self, job_id: str) -> EngineJob: ...

    async def stop(self, job_id: str) -> None: ...

    async def log(self, job_id: str) -> bytes: ...
