"""Cached batch predictions in memory."""

from __future__ import annotations

from flywheel_inference.fallback.choice import CachedPrediction


class MemoryCachedPredictions:
    """`prediction.CachedPredictions`."""

    def __init__(self) -> None:
        self.held: dict[tuple[str, str], CachedPrediction] = {}

    async def get(self, model: str, subject: str) -> CachedPrediction | None:
        return self.held.get((model, subject))
