"""Cached batch predictions in memory."""

from __future__ import annotations

from flywheel_common.scoring.cached_prediction import CachedPrediction


class MemoryCachedPredictions:
    """`prediction.CachedPredictions`."""

    def __init__(self) -> None:
        self.predictions: dict[tuple[str, str], CachedPrediction] = {}

    async def connect(self) -> None:
        pass

    async def get(self, model: str, keys: str) -> CachedPrediction | None:
        return self.predictions.get((model, keys))
