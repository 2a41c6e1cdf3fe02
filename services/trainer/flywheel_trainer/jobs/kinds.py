"""The registry of job kinds: what the job core needs to know of each kind of job.

A new kind is a specification class with a `KIND`, an entry here, a field of the oneof `Job.spec`, and an
entry in `encoding.specs`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, runtime_checkable

from flywheel_common.errors import FlywheelError
from flywheel_job.outcome import Outcome
from flywheel_trainer.jobs.evaluate_spec import EvaluateSpec
from flywheel_trainer.jobs.export_spec import ExportSpec
from flywheel_trainer.jobs.job import Job
from flywheel_trainer.jobs.limits import Limits
from flywheel_trainer.jobs.resources import Request
from flywheel_trainer.jobs.score_spec import ScoreSpec
from flywheel_trainer.jobs.train_spec import TrainSpec
from flywheel_trainer.jobs.tune_spec import TuneSpec

Spec = TrainSpec | TuneSpec | EvaluateSpec | ExportSpec | ScoreSpec
"""The specifications of all kinds."""
S_contra = TypeVar("S_contra", contravariant=True)


@dataclass(frozen=True)
class Launch:
    """What starts an attempt: files for its folder, and the command line."""

    files: Mapping[str, bytes]
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables of the attempt that other kinds do not get."""
    reads: tuple[str, ...] = ()
    """Addresses (`s3://…`) of the inputs; the attempt may read them and everything below."""
    writes: tuple[str, ...] = ()
    """Addresses at which it writes beside the folders that every job has."""


@dataclass(frozen=True)
class Preparation:
    """What an attempt needs before it can start: `details` for `launch` when it is complete, an `error` when
    it never will be, else a `message` for people."""

    details: Mapping[str, Any] | None = None
    message: str = ""
    error: FlywheelError | None = None


@runtime_checkable
class PreparedKind(Protocol):
    """A kind whose attempts need work of other services before they start.

    `prepare` is called before each launch, again and again until it is complete. It is idempotent, and starts
    no work twice for one job. Raises Unavailable; then the job waits.
    """

    async def prepare(self, job: Job, details: Mapping[str, Any]) -> Preparation: ...


class Kind(Protocol[S_contra]):
    """One kind of job; every `spec`, also that of a job, is of the kind's class.

    - `validate` checks a specification against its inputs and returns the details that `launch` needs, such
      as addresses of the inputs. Raises InvalidSpec and the errors of its peers.
    - `request` and `limits` are the resources and the limits that a specification asks for.
    - `launch` is a function of its arguments alone, so that a repeated launch is equal.
    - `progress` turns the last step of every metric into a JobProgress.
    - `conclude` reads the files that an attempt left: (outcome of a success, outcome of a failure). `read`
      returns None for a file that does not exist.
    """

    async def validate(self, spec: S_contra) -> Mapping[str, Any]: ...

    def request(self, spec: S_contra) -> Request: ...

    def limits(self, spec: S_contra) -> Limits: ...

    def launch(self, job: Job, details: Mapping[str, Any], attempt: int) -> Launch: ...

    def progress(self, job: Job, steps: Mapping[str, int]) -> Mapping[str, Any]: ...

    async def conclude(
        self, read: Callable[[str], Awaitable[bytes | None]]
    ) -> tuple[Outcome | None, Outcome | None]: ...


Kinds = Mapping[str, Kind[Any]]
"""By name of the kind."""
