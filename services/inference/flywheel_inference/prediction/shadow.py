"""Shadow copies: the challenger answers copies of the champion's requests, and no caller waits for it.

Copies wait in a bounded queue with one worker. A full queue drops and counts copies. A challenger that hangs,
fails or returns bad scores affects only its own log rows.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

import numpy as np

from flywheel_common.errors import FlywheelError
from flywheel_common.telemetry.logs import get_logger
from flywheel_inference.fallback.choice import ERROR, MODEL
from flywheel_inference.fallback.errors import BadScore
from flywheel_inference.models.feature_block import FeatureBlock
from flywheel_inference.prediction.log_rows import log_rows
from flywheel_inference.prediction_log.rows import LogRows
from flywheel_inference.requests.request import RoutedRequest
from flywheel_inference.routing.route import SHADOW
from flywheel_inference.scoring.scored import ScoredBatch
from flywheel_inference.scoring.scorer import ReleaseScorer

log = get_logger(__name__)


class ShadowCopies:
    """`offer` is called on the Predict path, `run` is a background task. At most `max_rows` copies wait; each
    batch gets `timeout_seconds`."""

    def __init__(
        self, offer_to_log: Callable[[LogRows], None], *, max_rows: int = 2_000, timeout_seconds: float = 1.0
    ) -> None:
        self._offer_to_log = offer_to_log
        self._max_rows = max_rows
        self._timeout = timeout_seconds
        self._queue: deque[tuple[ReleaseScorer, str, list[RoutedRequest], FeatureBlock]] = deque()
        self._rows = 0
        self._filled = asyncio.Event()
        self._running: ReleaseScorer | None = None
        self.dropped_count = 0

    def offer(
        self, challenger: ReleaseScorer, rollout: str, requests: list[RoutedRequest], block: FeatureBlock
    ) -> None:
        """Queues copies of requests that the champion answered. `block` holds the champion's features, which
        are reused when the challenger has the same feature set."""
        if self._rows + len(requests) > self._max_rows:
            self.dropped_count += len(requests)
            return
        self._rows += len(requests)
        self._queue.append((challenger, rollout, requests, block))
        self._filled.set()

    def uses(self, scorer: ReleaseScorer) -> bool:
        """Whether copies for this release wait or are being scored."""
        return self._running is scorer or any(challenger is scorer for challenger, *_ in self._queue)

    async def run(self) -> None:
        """Scores copies until cancelled."""
        while True:
            await self._filled.wait()
            while self._queue:
                challenger, rollout, requests, block = self._queue.popleft()
                self._rows -= len(requests)
                self._running = challenger
                try:
                    await self._score(challenger, rollout, requests, block)
                except Exception as error:
                    log.error(
                        "shadow copies failed",
                        release=challenger.spec.name,
                        rows=len(requests),
                        exc_info=error,
                    )
                finally:
                    self._running = None
            self._filled.clear()

    async def _score(
        self, challenger: ReleaseScorer, rollout: str, requests: list[RoutedRequest], block: FeatureBlock
    ) -> None:
        began = time.perf_counter()
        batch: ScoredBatch | None = None
        reason = ""
        try:
            if block.feature_set and block.feature_set == challenger.contract.feature_set:
                batch = await challenger.score_block(block, self._timeout)
            else:
                bound = [request.bound_to(challenger.contract) for request in requests]
                batch = await challenger.score_requests(bound, self._timeout)
        except FlywheelError as error:
            reason = error.reason
        milliseconds = (time.perf_counter() - began) * 1e3
        self._offer_to_log(_rows(challenger, rollout, requests, batch, reason, milliseconds))


def _rows(
    challenger: ReleaseScorer,
    rollout: str,
    requests: list[RoutedRequest],
    batch: ScoredBatch | None,
    reason: str,
    milliseconds: float,
) -> LogRows:
    """The challenger's answers; `batch` None: it failed with `reason`."""
    count = len(requests)
    scores = batch.scores if batch is not None else np.full(count, np.nan)
    finite = np.isfinite(scores)
    reasons = [] if finite.all() else ["" if ok else reason or BadScore.reason for ok in finite.tolist()]
    return log_rows(
        challenger,
        requests,
        role=SHADOW,
        rollout=rollout,
        block=batch.block if batch is not None else None,
        scores=scores,
        decisions=batch.decisions if batch is not None else np.zeros(count, np.bool_),
        sources=np.where(finite, MODEL, ERROR).astype(np.uint8),
        latencies_ms=np.full(count, milliseconds, np.float32),
        reasons=reasons,
    )
