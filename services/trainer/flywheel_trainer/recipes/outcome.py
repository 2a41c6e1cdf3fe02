"""The durable end of a job: one JSON object that says how it ended. Until it is there, the job has not ended."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

REPORT, MODEL, WEIGHTS = "report.json", "model.onnx", "weights.pt"


@dataclass(frozen=True)
class Produced:
    """A file that the job put on S3 under its digest."""

    name: str
    size_bytes: int
    sha256: str
    uri: str


@dataclass(frozen=True)
class MetricPoint:
    key: str
    step: int
    value: float
    time_us: int


@dataclass(frozen=True)
class Outcome:
    """How a job ended. `points` repeats every metric of the run, so that none is lost while the service was away."""

    succeeded: bool
    error_reason: str = ""
    error_message: str = ""
    artifacts: tuple[Produced, ...] = ()
    points: tuple[MetricPoint, ...] = ()
    params: dict[str, str] = field(default_factory=dict)
    code_version: str = ""
    environment: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Outcome:
        """Raises ValueError for anything but a whole outcome, e.g. a half-written object."""
        try:
            raw: dict[str, Any] = json.loads(data)
            raw["artifacts"] = tuple(Produced(**a) for a in raw["artifacts"])
            raw["points"] = tuple(MetricPoint(**p) for p in raw["points"])
            return cls(**raw)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not an outcome: {error}") from error
