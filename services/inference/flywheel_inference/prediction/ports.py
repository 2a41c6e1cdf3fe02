"""TODO docstring."""

from __future__ import annotations

from typing import Protocol

from flywheel_inference.fallback.choice import CachedPrediction
from flywheel_inference.routing.route import Route
from flywheel_inference.scoring.scorer import Lane


class Routes(Protocol):
    """The routing table as applied now."""

    def route(self, model: str) -> Route[Lane]:
        """Raises NotFound UNKNOWN_MODEL, Unavailable RELEASE_NOT_READY."""
        ...


class CachedPredictions(Protocol):
    """Batch predictions by model and entity keys (`request.subject_of`); the last one written is read. Never raises and never
    waits for long: what is absent, cannot be read or does not come in time is None."""

    async def get(self, model: str, subject: str) -> CachedPrediction | None: ...


class Measures(Protocol):
    """Counts for the operator."""

    def answered(self, model: str, role: int, source: int, reason: str) -> None: ...

    def batch(self, rows: int, features_ms: float, model_ms: float) -> None: ...
