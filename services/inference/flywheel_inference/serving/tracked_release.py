"""Loading state of one release: pending, loading, ready or failed, and when to retry."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from flywheel_common.errors import FlywheelError
from flywheel_inference.releases.release import ReleaseSpec
from flywheel_inference.scoring.scorer import ReleaseScorer

RETRY_SECONDS = (0.25, 0.5, 1.0, 2.0)
"""Pauses before retries while a dependency does not answer; the last one repeats."""
ReleaseKey = tuple[str, str]
"""`ReleaseSpec.key`."""
REFUSED_RETRY_SECONDS = 30.0
"""Pause after an error that only a change of the stored data can fix."""


@dataclass(slots=True, eq=False)
class TrackedRelease:
    """`refused`: the last error is not retryable. `retry_at` is on time.monotonic. `incomplete`: it is ready,
    but a model server that answers does not have it."""

    spec: ReleaseSpec
    scorer: ReleaseScorer | None = None
    failure: str = ""
    refused: bool = False
    incomplete: bool = False
    attempts: int = 0
    retry_at: float = 0.0
    task: asyncio.Task[None] | None = field(default=None, repr=False)

    @property
    def ready(self) -> bool:
        return self.scorer is not None and self.scorer.ready

    @property
    def last_asked(self) -> float:
        """When a request last came for it, on time.monotonic; 0: never."""
        return self.scorer.last_asked if self.scorer is not None else 0.0

    def due(self, now: float) -> bool:
        """Whether to start loading now."""
        return (not self.ready or self.incomplete) and self.task is None and now >= self.retry_at

    def loaded(self, scorer: ReleaseScorer) -> None:
        """Loading succeeded."""
        self.scorer = scorer
        scorer.ready = True
        self.failure, self.refused, self.attempts, self.incomplete = "", False, 0, False

    def failed(self, error: FlywheelError, now: float, *, refused: bool) -> None:
        """Loading failed: schedules the retry."""
        self.failure, self.refused = f"{error.reason}: {error.message}", refused
        self.retry_later(now, refused=refused)

    def retry_later(self, now: float, *, refused: bool) -> None:
        """Schedules the next load."""
        pause = RETRY_SECONDS[min(self.attempts, len(RETRY_SECONDS) - 1)]
        self.retry_at = now + (REFUSED_RETRY_SECONDS if refused else pause)
        self.attempts += 1
