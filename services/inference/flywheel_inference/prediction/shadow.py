"""Shadow copies: the challenger answers what the champion answered, and nobody waits for it.

Copies wait in a bounded queue served by one task. A full queue drops and counts; a challenger that hangs, fails or
answers nonsense shows in its own log rows and nowhere else.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

import numpy as np

from flywheel_common.errors import FlywheelError, InvalidArgument
from flywheel_common.telemetry.logs import get_logger
from flywheel_inference.fallback import choice
from flywheel_inference.fallback.choice import CannotScore
from flywheel_inference.models.feature_block import FeatureBlock
from flywheel_inference.prediction_log.rows import LogRows
from flywheel_inference.requests.request import Item
from flywheel_inference.routing.role import SHADOW
from flywheel_inference.scoring.scorer import Lane, ScoredBatch

log = get_logger(__name__)


class ShadowCopies:
    """`offer` from the hot path, `run` as a background task. At most `max_rows` wait; each batch gets
    `timeout_seconds`."""

    def __init__(
        self, logged: Callable[[LogRows], None], *, max_rows: int = 2_000, timeout_seconds: float = 1.0
    ) -> None:
        self._logged = logged
        self._max_rows = max_rows
        self._timeout = timeout_seconds
        self._queue: deque[tuple[Lane, str, list[Item], FeatureBlock]] = deque()
        self._rows = 0
        self._filled = asyncio.Event()
        self._busy_with: Lane | None = None
        self.dropped_count = 0

    def offer(self, challenger: Lane, rollout: str, items: list[Item], block: FeatureBlock) -> None:
        """Copies answered by the champion, with the features it saw (used again when the feature set is the same)."""
        if self._rows + len(items) > self._max_rows:
            self.dropped_count += len(items)
            return
        self._rows += len(items)
        self._queue.append((challenger, rollout, items, block))
        self._filled.set()

    def uses(self, lane: Lane) -> bool:
        """Whether copies for this release wait or are being answered."""
        return self._busy_with is lane or any(challenger is lane for challenger, *_ in self._queue)

    async def run(self) -> None:
        """Answers copies until cancelled."""
        while True:
            await self._filled.wait()
            while self._queue:
                challenger, rollout, items, block = self._queue.popleft()
                self._rows -= len(items)
                self._busy_with = challenger
                try:
                    await self._answer(challenger, rollout, items, block)
                except Exception as error:
                    log.error(
                        "shadow copies failed", release=challenger.spec.name, rows=len(items), exc_info=error
                    )
                finally:
                    self._busy_with = None
            self._filled.clear()

    async def _answer(self, challenger: Lane, rollout: str, items: list[Item], block: FeatureBlock) -> None:
        began = time.perf_counter()
        batch: ScoredBatch | None = None
        reason = ""
        try:
            if block.feature_set and block.feature_set == challenger.contract.feature_set:
                batch = await challenger.score_block(block, self._timeout)
            else:
                batch = await challenger.score_items(_rebound(challenger, items), self._timeout)
        except CannotScore as error:
            reason = error.reason
        except FlywheelError as error:
            reason = error.reason
        milliseconds = (time.perf_counter() - began) * 1e3
        self._logged(_rows(challenger, rollout, items, batch, reason, milliseconds))


def _rebound(challenger: Lane, items: list[Item]) -> list[Item]:
    """The requests bound to what the challenger's own feature set needs. Raises InvalidArgument."""
    rebound = []
    for item in items:
        try:
            keys, fields = item.call.bind(challenger.contract)
        except InvalidArgument as error:
            raise CannotScore(error.reason, error.message) from None
        rebound.append(
            Item(
                call=item.call,
                prediction_id=item.prediction_id,
                keys=keys,
                fields=fields,
                as_of_micros=item.as_of_micros,
                event_micros=item.event_micros,
                subject=item.subject,
                segment=item.segment,
                started=item.started,
            )
        )
    return rebound


def _rows(
    challenger: Lane,
    rollout: str,
    items: list[Item],
    batch: ScoredBatch | None,
    reason: str,
    milliseconds: float,
) -> LogRows:
    count = len(items)
    scores = batch.scores if batch is not None else np.full(count, np.nan)
    good = np.isfinite(scores)
    reasons = [] if good.all() else ["" if ok else reason or choice.BAD_SCORE for ok in good.tolist()]
    return LogRows(
        spec=challenger.spec,
        contract=challenger.contract,
        rollout=rollout,
        role=SHADOW,
        feature_set=batch.block.feature_set if batch is not None else challenger.contract.feature_set,
        items=items,
        features=challenger.tensors.served(batch.block) if batch is not None else None,
        scores=scores,
        decisions=batch.decisions if batch is not None else np.zeros(count, np.bool_),
        sources=np.where(good, choice.MODEL, choice.ERROR).astype(np.uint8),
        latencies_ms=np.full(count, milliseconds, np.float32),
        reasons=reasons,
        applied=batch.block.applied if batch is not None else (),
    )
