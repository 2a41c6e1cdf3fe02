"""Shadow copies: the challenger answers copies of the champion's requests, and no caller waits for it.

Copies wait in one bounded queue per release, each with its own worker. A full queue drops and counts copies.
A challenger that hangs, fails or returns bad scores affects only its own log rows.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from flywheel_common.errors import FlywheelError, InvalidArgument
from flywheel_common.scoring.feature_block import FeatureBlock
from flywheel_common.tasks import TaskGroup
from flywheel_common.telemetry.logs import get_logger
from flywheel_inference.fallback.choice import ERROR, MODEL
from flywheel_inference.fallback.errors import BadScore
from flywheel_inference.prediction.log_rows import log_rows
from flywheel_inference.prediction_log.rows import LogRows
from flywheel_inference.releases.rollout_step import RolloutStep
from flywheel_inference.requests.request import RoutedRequest, thresholds_of
from flywheel_inference.routing.route import SHADOW
from flywheel_inference.scoring.scored import ScoredBatch
from flywheel_inference.scoring.scorer import ReleaseScorer

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Copies:
    """Requests of one batch with the champion's features, for one challenger."""

    challenger: ReleaseScorer
    step: RolloutStep
    requests: list[RoutedRequest]
    block: FeatureBlock
    size_bytes: int


class _Queue:
    """The waiting copies for one release."""

    def __init__(self) -> None:
        self.waiting: deque[_Copies] = deque()
        self.running: _Copies | None = None
        self.worker: asyncio.Task[None] | None = None
        self.rows = 0
        self.bytes = 0

    def add(self, copies: _Copies) -> None:
        self.waiting.append(copies)
        self.rows += len(copies.requests)
        self.bytes += copies.size_bytes

    def take(self) -> _Copies:
        copies = self.waiting.popleft()
        self.rows -= len(copies.requests)
        self.bytes -= copies.size_bytes
        return copies


class ShadowCopies:
    """`offer` is called on the Predict path, `run` is a background task. At most `max_rows` copies and
    `max_bytes` for each release wait; each batch gets `timeout_seconds`."""

    def __init__(
        self,
        offer_to_log: Callable[[LogRows], None],
        *,
        max_rows: int = 2_000,
        max_bytes: int = 32 * 1024 * 1024,
        timeout_seconds: float = 1.0,
    ) -> None:
        self._offer_to_log = offer_to_log
        self._max_rows = max_rows
        self._max_bytes = max_bytes
        self._timeout = timeout_seconds
        self._queues: dict[str, _Queue] = {}
        self._filled = asyncio.Event()
        self.dropped_count = 0

    def offer(
        self, challenger: ReleaseScorer, step: RolloutStep, requests: list[RoutedRequest], block: FeatureBlock
    ) -> None:
        """Queues copies of requests that the champion answered. `block` holds the champion's features, which
        are reused when the challenger has the same feature set."""
        size = block.size_bytes + sum(request.call.size_bytes for request in requests)
        queue = self._queues.setdefault(challenger.spec.name, _Queue())
        if queue.rows + len(requests) > self._max_rows or queue.bytes + size > self._max_bytes:
            self.dropped_count += len(requests)
            return
        queue.add(_Copies(challenger, step, requests, block, size))
        self._filled.set()

    def uses(self, scorer: ReleaseScorer) -> bool:
        """Whether copies for this release wait or are being scored."""
        queue = self._queues.get(scorer.spec.name)
        if queue is None:
            return False
        busy = [*queue.waiting, queue.running] if queue.running is not None else queue.waiting
        return any(copies is not None and copies.challenger is scorer for copies in busy)

    async def run(self) -> None:
        """Scores copies until cancelled. Can be called again after an exception."""
        for queue in self._queues.values():
            # A worker that was cancelled before its first step has not reset it.
            queue.worker = None
        self._filled.set()
        async with TaskGroup() as group:
            while True:
                await self._filled.wait()
                self._filled.clear()
                for release, queue in list(self._queues.items()):
                    if queue.worker is None and queue.waiting:
                        queue.worker = group.create_task(self._work(queue))
                    elif queue.worker is None:
                        del self._queues[release]

    async def _work(self, queue: _Queue) -> None:
        """Scores the copies for one release until none waits."""
        try:
            while queue.waiting:
                copies = queue.running = queue.take()
                try:
                    await self._score(copies.challenger, copies.step, copies.requests, copies.block)
                except Exception as error:
                    log.error(
                        "shadow copies failed",
                        release=copies.challenger.spec.name,
                        rows=len(copies.requests),
                        exc_info=error,
                    )
                finally:
                    queue.running = None
        finally:
            queue.worker = None

    async def _score(
        self, challenger: ReleaseScorer, step: RolloutStep, requests: list[RoutedRequest], block: FeatureBlock
    ) -> None:
        began = time.perf_counter()
        batch: ScoredBatch | None = None
        failed: list[tuple[RoutedRequest, str]] = []
        scored = requests
        try:
            if block.feature_set and block.feature_set == challenger.contract.feature_set:
                keys = challenger.spec.segment_keys
                scored = [request.bound_to(request.contract, keys) for request in requests]
                thresholds = thresholds_of(challenger.spec, scored)
                result = await challenger.score_block(block, thresholds, self._timeout)
            else:
                scored, failed = _bound(requests, challenger)
                result = await challenger.score_requests(scored, self._timeout)
            failed += [(scored[row], error.reason) for row, error in result.errors.items()]
            batch, scored = result.batch, [scored[row] for row in result.rows]
        except FlywheelError as error:
            failed += [(request, error.reason) for request in scored]
            scored = []
        milliseconds = (time.perf_counter() - began) * 1e3
        if batch is not None:
            self._offer_to_log(_answers(challenger, step, scored, batch, milliseconds))
        for of_contract in _by_contract(failed):
            self._offer_to_log(_failures(challenger, step, of_contract, milliseconds))


def _bound(
    requests: list[RoutedRequest], challenger: ReleaseScorer
) -> tuple[list[RoutedRequest], list[tuple[RoutedRequest, str]]]:
    """The requests bound to the challenger; and those that lack what it needs, with the reason."""
    bound, failed = [], []
    for request in requests:
        try:
            bound.append(request.bound_to(challenger.contract, challenger.spec.segment_keys))
        except InvalidArgument as error:
            failed.append((request, error.reason))
    return bound, failed


def _by_contract(failed: list[tuple[RoutedRequest, str]]) -> list[list[tuple[RoutedRequest, str]]]:
    groups: dict[str, list[tuple[RoutedRequest, str]]] = {}
    for request, reason in failed:
        groups.setdefault(request.contract.feature_set, []).append((request, reason))
    return list(groups.values())


def _answers(
    challenger: ReleaseScorer,
    step: RolloutStep,
    requests: list[RoutedRequest],
    batch: ScoredBatch,
    milliseconds: float,
) -> LogRows:
    finite, cost = batch.finite, challenger.spec.serving.cost
    return log_rows(
        challenger,
        requests,
        role=SHADOW,
        step=step,
        block=batch.block,
        values=batch.values,
        decisions=batch.decisions,
        sources=np.where(finite, MODEL, ERROR).astype(np.uint8),
        latencies_ms=np.full(len(requests), milliseconds, np.float32),
        reasons=[] if finite.all() else ["" if ok else BadScore.reason for ok in finite.tolist()],
        cost=cost.of_answer(batch.model_ms, len(requests)) if cost is not None else None,
    )


def _failures(
    challenger: ReleaseScorer, step: RolloutStep, failed: list[tuple[RoutedRequest, str]], milliseconds: float
) -> LogRows:
    count, cost = len(failed), challenger.spec.serving.cost
    return log_rows(
        challenger,
        [request for request, _ in failed],
        role=SHADOW,
        step=step,
        block=None,
        values=np.full((count, challenger.spec.signature.output.width), np.nan),
        decisions=np.zeros(count, np.bool_),
        sources=np.full(count, ERROR, np.uint8),
        latencies_ms=np.full(count, milliseconds, np.float32),
        reasons=[reason for _, reason in failed],
        cost=cost.of_answer() if cost is not None else None,
    )
