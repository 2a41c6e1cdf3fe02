"""The outcome of a job: one JSON object on S3. A job without this object has not ended."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from flywheel_common.errors import FlywheelError


@dataclass(frozen=True)
class Artifact:
    """A file that a run stored on S3 under its digest."""

    name: str
    size_bytes: int
    sha256: str
    uri: str


@dataclass(frozen=True)
class MetricPoint:
    """The value of a metric at one step; `time_us` is in microseconds since the epoch."""

    key: str
    step: int
    value: float
    time_us: int


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    `points` holds every metric point of the run again, so that points which did not reach the service are not
    lost.
    """

    succeeded: bool
    error_reason: str = ""
    error_message: str = ""
    artifacts: tuple[Artifact, ...] = ()
    points: tuple[MetricPoint, ...] = ()
    params: dict[str, str] = field(default_factory=dict)
    code_version: str = ""
    environment: dict[str, str] = field(default_factory=dict)

    @classmethod
    def failed(cls, error: FlywheelError) -> Self:
        """The outcome of a job that this error ended."""
        return cls(succeeded=False, error_reason=error.reason, error_message=error.message)

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Raises ValueError for anything but a complete outcome, such as a partly written object."""
        try:
            raw: dict[str, Any] = json.loads(data)
            raw["artifacts"] = tuple(Artifact(**a) for a in raw["artifacts"])
            raw["points"] = tuple(MetricPoint(**p) for p in raw["points"])
            return cls(**raw)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not an outcome: {error}") from error
