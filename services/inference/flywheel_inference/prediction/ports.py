"""Ports of the Predict use case."""

from __future__ import annotations

from typing import Protocol

from flywheel_common.scoring.cached_prediction import CachedPrediction
from flywheel_inference.routing.route import Route
from flywheel_inference.scoring.scorer import ReleaseScorer


class Routes(Protocol):
    """The routes applied now."""

    def route(self, model: str) -> Route[ReleaseScorer]:
        """Raises NotFound UNKNOWN_MODEL, Unavailable RELEASE_NOT_READY, InvalidArgument INVALID_NAME."""
        ...


class CachedPredictions(Protocol):
    """Batch predictions by model and entity keys (`cached_prediction.joined_keys`). A read returns the value
    written last. Never raises and never waits long: a value that is absent, unreadable or late is None."""

    async def connect(self) -> None:
        """Prepare for the first read. Does not raise while the store is down."""
        ...

    async def get(self, model: str, keys: str) -> CachedPrediction | None: ...


class Measures(Protocol):
    """Metrics of predictions."""

    def answered(self, model: str, role: int, source: int, reason: str, total_ms: float) -> None:
        """A request was answered, `total_ms` after it came."""
        ...

    def batch(self, rows: int, features_ms: float, model_ms: float) -> None:
        """A batch was scored."""
        ...
