"""The Predict use case: route, score, fall back, log. Each request gets one answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flywheel_common.context import current_principal, left_seconds
from flywheel_common.errors import InvalidArgument
from flywheel_common.scoring.cached_prediction import joined_keys
from flywheel_inference.batching.batcher import Expired
from flywheel_inference.fallback.choice import CACHED, ERROR, MODEL, choose_fallback
from flywheel_inference.fallback.errors import BudgetExceeded, CannotScore, NoCachedPrediction, NoFallback
from flywheel_inference.prediction.admission import Admission
from flywheel_inference.prediction.log_rows import log_rows
from flywheel_inference.prediction.ports import CachedPredictions, Measures, Routes
from flywheel_inference.prediction.shadow import ShadowCopies
from flywheel_inference.prediction_log.buffer import PredictionLog
from flywheel_inference.releases.rollout_step import RolloutStep
from flywheel_inference.requests.errors import UnknownVariant
from flywheel_inference.requests.request import (
    PredictCall,
    RoutedRequest,
    checked_id,
    subject_of,
    thresholds_of,
)
from flywheel_inference.routing.route import CHALLENGER, CHAMPION, Route
from flywheel_inference.scoring.scored import Scored, ScoredBatch
from flywheel_inference.scoring.scorer import ReleaseScorer


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The answer to a request. `values`: the calibrated output, as many as its width. `scored` is None when
    the answer comes from a fallback. Times in milliseconds."""

    request: RoutedRequest
    scorer: ReleaseScorer
    role: int
    values: Sequence[float]
    score: float
    decision: bool
    source: int
    reason: str
    scored: Scored | None
    total_ms: float


class Predictor:
    """Answers requests that `admission` admits, each within its caller's deadline less `reserve_seconds`."""

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
        admission: Admission,
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
        self._admission = admission
        self._default_budget = default_budget_seconds
        self._reserve = reserve_seconds
        self._loop = asyncio.get_running_loop()

    async def predict(self, call: PredictCall) -> Answer:
        """Raises InvalidArgument, NotFound, ResourceExhausted OVERLOADED, Unavailable NO_FALLBACK,
        RELEASE_NOT_READY."""
        started = time.perf_counter()
        route = self._routes.route(call.model)
        with self._admission.admitted(call.model, current_principal(), call.priority):
            return await self._predict(route, call, started)

    async def _predict(self, route: Route[ReleaseScorer], call: PredictCall, started: float) -> Answer:
        champion = route.champion
        keys, fields = call.bind(champion.contract)
        subject = call.subject or subject_of(keys)
        request = RoutedRequest(
            call=call,
            contract=champion.contract,
            prediction_id=checked_id(call.prediction_id) or self._new_id(),
            keys=keys,
            fields=fields,
            as_of_micros=call.as_of_micros,
            event_micros=call.as_of_micros if call.as_of_micros is not None else self._now_micros(),
            subject=subject,
            segment_keys=champion.spec.segment_keys,
            started=started,
            role=CHAMPION,
            step=route.step,
        )
        left = left_seconds()
        budget = (self._default_budget if left is None else min(left, self._default_budget)) - self._reserve
        deadline = self._loop.time() + budget
        if call.variant:
            return await self._forced(route, call.variant, request, deadline)
        if route.champion_alone:
            return await self._score(champion, request, deadline)
        choice = route.choose(subject)
        request.step, request.copies = choice.step, choice.shadows
        if not choice.challenger:
            return await self._score(champion, request, deadline)
        try:
            return await self._score(choice.release, self._for_challenger(request, choice.release), deadline)
        except InvalidArgument as refusal:
            # The challenger needs what the caller does not send. The champion may be content with it.
            answer = await self._score(champion, request, deadline)
            self._log_failure(choice.release, request, refusal.reason)
            return answer
        except NoFallback:
            # The challenger's failure is logged. The champion would have answered without the rollout.
            if self._loop.time() >= deadline:
                raise
            return await self._score(champion, request, deadline)

    async def _forced(
        self, route: Route[ReleaseScorer], variant: str, request: RoutedRequest, deadline: float
    ) -> Answer:
        """The answer of the variant that the caller wants."""
        choice = route.forced(variant)
        if choice is None:
            raise UnknownVariant(f"{route.model} has no variant {variant[:80]!r} now.")
        request.step = choice.step
        bound = self._for_challenger(request, choice.release) if choice.challenger else request
        return await self._score(choice.release, bound, deadline)

    def _for_challenger(self, request: RoutedRequest, challenger: ReleaseScorer) -> RoutedRequest:
        """The request, bound to the challenger. Raises InvalidArgument."""
        bound = request.bound_to(challenger.contract, challenger.spec.segment_keys)
        bound.role, bound.step, bound.copies = CHALLENGER, request.step, request.copies
        return bound

    async def _score(self, scorer: ReleaseScorer, request: RoutedRequest, deadline: float) -> Answer:
        mode = scorer.spec.serving.cost_mode
        if mode is not None and not mode.worth_the_model(request.named_values()):
            return await self._fall_back(scorer, request, NoCachedPrediction.reason, by_cost_mode=True)
        try:
            scored = await scorer.score(request, deadline)
        except CannotScore as error:
            return await self._fall_back(scorer, request, error.reason)
        except Expired:
            return await self._fall_back(scorer, request, BudgetExceeded.reason)
        total_ms = (time.perf_counter() - request.started) * 1e3
        self._measures.answered(scorer.spec.model, request.role, MODEL, "", total_ms)
        return Answer(
            request=request,
            scorer=scorer,
            role=request.role,
            values=scored.values,
            score=scored.score,
            decision=scored.decision,
            source=MODEL,
            reason="",
            scored=scored,
            total_ms=total_ms,
        )

    def _log_failure(self, challenger: ReleaseScorer, request: RoutedRequest, reason: str) -> None:
        """Logs that the challenger refused a request which the champion answered."""
        total_ms = (time.perf_counter() - request.started) * 1e3
        self._log_unscored(challenger, request, CHALLENGER, None, ERROR, reason, total_ms)

    def _log_unscored(
        self,
        scorer: ReleaseScorer,
        request: RoutedRequest,
        role: int,
        found: Sequence[float] | None,
        source: int,
        reason: str,
        total_ms: float,
    ) -> tuple[float, bool]:
        """Logs and counts an answer that the model did not give; returns its score and decision. `found`: the
        values of the answer; None: there is none."""
        spec = scorer.spec
        values = np.full((1, spec.signature.output.width), np.nan)
        if found is not None:
            values[0] = found
        scores = spec.scores(values)
        decisions = spec.decisions(scores, thresholds_of(spec, [request]))
        cost = spec.serving.cost
        self._log.offer(
            log_rows(
                scorer,
                [request],
                role=role,
                step=request.step,
                block=None,
                values=values,
                decisions=decisions,
                sources=np.array([source], np.uint8),
                latencies_ms=np.array([total_ms], np.float32),
                reasons=[reason] if reason else (),
                cost=cost.of_answer() if cost is not None else None,
            )
        )
        self._measures.answered(spec.model, role, source, reason, total_ms)
        return float(scores[0]), bool(decisions[0])

    def log_batch(self, scorer: ReleaseScorer, requests: list[RoutedRequest], batch: ScoredBatch) -> None:
        """Logs a scored batch before its callers get their answers, and offers its shadow copies."""
        now = time.perf_counter()
        self._measures.batch(len(requests), batch.features_ms, batch.model_ms)
        cost = scorer.spec.serving.cost
        each = cost.of_answer(batch.model_ms, len(requests)) if cost is not None else None
        # Almost always a single group; several only in a batch during which the generation changes.
        for (role, step), rows in _grouped(requests, lambda r: (r.role, r.step)).items():
            single = len(rows) == len(requests)
            part = batch if single else batch.take(np.array(rows))
            of_part = requests if single else [requests[row] for row in rows]
            self._log.offer(
                log_rows(
                    scorer,
                    of_part,
                    role=role,
                    step=step,
                    block=part.block,
                    values=part.values,
                    decisions=part.decisions,
                    sources=np.full(len(rows), MODEL, np.uint8),
                    latencies_ms=np.array([(now - r.started) * 1e3 for r in of_part], np.float32),
                    cost=each,
                )
            )
        copies: dict[tuple[ReleaseScorer, RolloutStep], list[int]] = {}
        for row, request in enumerate(requests):
            for copy in request.copies:
                copies.setdefault(copy, []).append(row)
        for (shadow, step), rows in copies.items():
            block = batch.block if len(rows) == len(requests) else batch.block.take(np.array(rows))
            self._shadow.offer(shadow, step, [requests[row] for row in rows], block)

    async def _fall_back(
        self, scorer: ReleaseScorer, request: RoutedRequest, reason: str, *, by_cost_mode: bool = False
    ) -> Answer:
        """The answer without the model. `by_cost_mode`: a cached prediction is the regular answer."""
        policy, cached = scorer.spec.fallback, None
        if self._cached is not None and policy.cached_max_age_seconds > 0:
            cached = await self._cached.get(scorer.spec.model, joined_keys(request.keys))
        output = scorer.spec.signature.output
        values, source = choose_fallback(policy, output, cached, request.event_micros) or (None, ERROR)
        if by_cost_mode and source == CACHED:
            reason = ""
        total_ms = (time.perf_counter() - request.started) * 1e3
        score, decision = self._log_unscored(scorer, request, request.role, values, source, reason, total_ms)
        if values is None:
            raise NoFallback(
                f"The model cannot answer ({reason}) and no fallback of release {scorer.spec.name} applies: "
                "retry, or declare a default answer.",
                cause=reason,
            )
        return Answer(
            request=request,
            scorer=scorer,
            role=request.role,
            values=values,
            score=score,
            decision=decision,
            source=source,
            reason=reason,
            scored=None,
            total_ms=total_ms,
        )


def _grouped(
    requests: list[RoutedRequest], key: Callable[[RoutedRequest], tuple[Any, RolloutStep]]
) -> dict[tuple[Any, RolloutStep], list[int]]:
    groups: dict[tuple[Any, RolloutStep], list[int]] = {}
    for row, request in enumerate(requests):
        groups.setdefault(key(request), []).append(row)
    return groups
