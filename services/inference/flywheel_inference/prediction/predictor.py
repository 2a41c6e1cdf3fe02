"""The Predict use case: route, score, fall back, log. One answer per request, in every weather."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from flywheel_common.context import left_seconds
from flywheel_common.errors import InvalidArgument, ResourceExhausted
from flywheel_inference.batching.batcher import Expired
from flywheel_inference.fallback import choice as fallback_choice
from flywheel_inference.fallback.choice import CannotScore, NoFallback, fall_back
from flywheel_inference.prediction.ports import CachedPredictions, Measures, Routes
from flywheel_inference.prediction.shadow import ShadowCopies
from flywheel_inference.prediction_log.buffer import PredictionLog
from flywheel_inference.prediction_log.rows import LogRows
from flywheel_inference.requests.request import MAX_ID_LENGTH, Item, PredictCall, segment_of, subject_of
from flywheel_inference.routing.role import CHALLENGER, CHAMPION
from flywheel_inference.routing.route import Route
from flywheel_inference.scoring.scorer import Lane, Scored, ScoredBatch


@dataclass(frozen=True, slots=True)
class Answer:
    """`scored` is None when the answer is not the model's. Times in milliseconds."""

    item: Item
    lane: Lane
    role: int
    score: float
    decision: bool
    source: int
    reason: str
    scored: Scored | None
    total_ms: float


class Predictor:
    """Answers requests. At most `max_in_flight` at once; each within its caller's budget less `reserve_seconds`."""

    def __init__(
        self,
        routes: Routes,
        log: PredictionLog,
        shadow: ShadowCopies,
        measures: Measures,
        *,
        cached: CachedPredictions | None,
        new_id: Callable[[], str],
        now_micros: Callable[[], int],
        max_in_flight: int = 1024,
        default_budget_seconds: float = 1.0,
        reserve_seconds: float = 0.005,
    ) -> None:
        self._routes = routes
        self._log = log
        self._shadow = shadow
        self._measures = measures
        self._cached = cached
        self._new_id = new_id
        self._now_micros = now_micros
        self._max_in_flight = max_in_flight
        self._default_budget = default_budget_seconds
        self._reserve = reserve_seconds
        self._loop = asyncio.get_running_loop()
        self.in_flight = 0

    async def predict(self, call: PredictCall) -> Answer:
        """Raises InvalidArgument, NotFound, ResourceExhausted OVERLOADED, NoFallback."""
        started = time.perf_counter()
        if self.in_flight >= self._max_in_flight:
            raise ResourceExhausted(
                f"{self._max_in_flight} predictions are in flight already: retry after the delay, with backoff.",
                reason="OVERLOADED",
                retry_after_seconds=0.05,
            )
        route = self._routes.route(call.model)
        self.in_flight += 1
        try:
            return await self._predict(route, call, started)
        finally:
            self.in_flight -= 1

    async def _predict(self, route: Route[Lane], call: PredictCall, started: float) -> Answer:
        lane, role = route.champion, CHAMPION
        keys, fields = call.bind(lane.contract)
        subject = call.subject or subject_of(keys)
        copy_to = None
        if route.challenger is not None:
            choice = route.choose(subject)
            copy_to = choice.shadow
            if choice.challenger:
                lane, role = choice.release, CHALLENGER
                if lane.contract is not route.champion.contract:
                    keys, fields = call.bind(lane.contract)
        item = Item(
            call=call,
            prediction_id=_checked(call.prediction_id) or self._new_id(),
            keys=keys,
            fields=fields,
            as_of_micros=call.as_of_micros,
            event_micros=call.as_of_micros if call.as_of_micros is not None else self._now_micros(),
            subject=subject,
            segment=segment_of(call, lane.spec.segment_keys) if lane.spec.segment_keys else "",
            started=started,
            role=role,
            rollout=route.rollout,
            copy_to=copy_to,
        )
        left = left_seconds()
        budget = (self._default_budget if left is None else min(left, self._default_budget)) - self._reserve
        try:
            scored = await lane.score(item, self._loop.time() + budget)
        except CannotScore as error:
            return await self._degraded(route, lane, role, item, error.reason)
        except Expired:
            return await self._degraded(route, lane, role, item, fallback_choice.BUDGET_EXCEEDED)
        self._measures.answered(lane.spec.model, role, fallback_choice.MODEL, "")
        total = (time.perf_counter() - started) * 1e3
        return Answer(
            item, lane, role, scored.score, scored.decision, fallback_choice.MODEL, "", scored, total
        )

    def scored(self, lane: Lane, items: list[Item], batch: ScoredBatch) -> None:
        """A lane's answers on their way to the callers: log them, copy those that the challenger is to see."""
        now = time.perf_counter()
        self._measures.batch(len(items), batch.features_ms, batch.model_ms)
        served = lane.tensors.served(batch.block)
        latencies = np.array([(now - item.started) * 1e3 for item in items], np.float32)
        sources = np.full(len(items), fallback_choice.MODEL, np.uint8)
        # One kind, save for the batch in which a generation changes.
        for (role, rollout), rows in _grouped(items, lambda item: (item.role, item.rollout)).items():
            index: Any = slice(None) if len(rows) == len(items) else np.array(rows)
            self._log.offer(
                LogRows(
                    spec=lane.spec,
                    contract=lane.contract,
                    rollout=rollout,
                    role=role,
                    feature_set=batch.block.feature_set,
                    items=[items[row] for row in rows],
                    features=tuple(column.take(index) for column in served),
                    scores=batch.scores[index],
                    decisions=batch.decisions[index],
                    sources=sources[index],
                    latencies_ms=latencies[index],
                    reasons=[],
                    applied=tuple(column.take(index) for column in batch.block.applied),
                )
            )
        for (challenger, rollout), rows in _grouped(items, lambda item: (item.copy_to, item.rollout)).items():
            if challenger is not None:
                block = batch.block if len(rows) == len(items) else batch.block.take(np.array(rows))
                self._shadow.offer(challenger, rollout, [items[row] for row in rows], block)

    async def _degraded(self, route: Route[Lane], lane: Lane, role: int, item: Item, reason: str) -> Answer:
        policy, cached = lane.spec.fallback, None
        if self._cached is not None and policy.cached_max_age_seconds > 0:
            cached = await self._cached.get(lane.spec.model, subject_of(item.keys))
        found = fall_back(policy, cached, item.event_micros)
        score, source = found if found is not None else (float("nan"), fallback_choice.ERROR)
        decision = score >= lane.spec.threshold
        total = (time.perf_counter() - item.started) * 1e3
        self._log.offer(
            LogRows(
                spec=lane.spec,
                contract=lane.contract,
                rollout=route.rollout,
                role=role,
                feature_set=lane.contract.feature_set,
                items=[item],
                features=None,
                scores=np.array([score]),
                decisions=np.array([decision]),
                sources=np.array([source], np.uint8),
                latencies_ms=np.array([total], np.float32),
                reasons=[reason],
            )
        )
        self._measures.answered(lane.spec.model, role, source, reason)
        if found is None:
            raise NoFallback(
                f"The model cannot answer ({reason}) and release {lane.spec.name} declares no default score: retry, or declare one.",
                cause=reason,
            )
        return Answer(item, lane, role, score, decision, source, reason, None, total)


def _checked(prediction_id: str) -> str:
    if len(prediction_id) > MAX_ID_LENGTH:
        raise InvalidArgument(
            f"prediction_id has {len(prediction_id)} characters, at most {MAX_ID_LENGTH} are allowed.",
            reason="INVALID_PREDICTION_ID",
        )
    return prediction_id


def _grouped(items: list[Item], key: Callable[[Item], tuple[Any, str]]) -> dict[tuple[Any, str], list[int]]:
    groups: dict[tuple[Any, str], list[int]] = {}
    for row, item in enumerate(items):
        groups.setdefault(key(item), []).append(row)
    return groups
