"""The port of labelled predictions."""

from __future__ import annotations

from typing import Protocol

from flywheel_monitor.performance.quality import Quality
from flywheel_monitor.windows.counts import WindowCounts
from flywheel_monitor.windows.span import Span


class LabelledPredictions(Protocol):
    """Quality of the labelled predictions of a window."""

    async def quality(self, version_id: int, span: Span, window: WindowCounts, segment: str = "") -> Quality:
        """Quality from the counts of the window, with the exact AUC as long as all its labelled
        predictions are stored."""
        ...
