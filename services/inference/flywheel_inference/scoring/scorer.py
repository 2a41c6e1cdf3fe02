"""Scoring of one loaded release: batched requests → feature lookup → model call → calibrated scores."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from flywheel_common.arrays import Array
from flywheel_common.errors import DeadlineExceeded, FlywheelError, NotFound
from flywheel_common.scoring.feature_block import PRESENT, FeatureBlock
from flywheel_common.scoring.input_tensors import MissingFeature, TensorBuilder, Tensors
from flywheel_common.scoring.preparation import prepare
from flywheel_inference.batching.batcher import Batcher, Entry
from flywheel_inference.fallback.circuit_breaker import CircuitBreaker
from flywheel_inference.fallback.errors import (
    BadScore,
    BudgetExceeded,
    FeatureMissing,
    FeaturesIncomplete,
    FeatureStale,
    InputNotExact,
    ModelUnavailable,
)
from flywheel_inference.models.ports import ModelServer
from flywheel_inference.releases.release import FeatureSetContract, ReleaseSpec
from flywheel_inference.requests.request import RoutedRequest, thresholds_of
from flywheel_inference.scoring.feature_reader import FeatureReader
from flywheel_inference.scoring.ports import FeatureLookup
from flywheel_inference.scoring.scored import Scored, ScoredBatch, ScoredRequests


@dataclass(frozen=True, slots=True)
class ScorerSettings:
    """Limits of the batches of one release: see `Batcher`. `cap_seconds` bounds feature lookup and model call
    of one batch together."""

    max_rows: int = 256
    slots: int = 1
    max_slots: int = 8
    stall_seconds: float = 0.05
    cap_seconds: float = 0.25


_REFUSED = {error.reason: error for error in (InputNotExact, FeatureStale, FeatureMissing)}
"""Reason of a row that `prepare` refuses → its error."""

OnScored = Callable[["ReleaseScorer", list[RoutedRequest], ScoredBatch], None]
"""Called with the answered requests of a batch (rows in the order of its arrays), before the callers get
them."""


class ReleaseScorer:
    """Scores requests with one loaded release, in batches. `ready`: the model is loaded and verified."""

    def __init__(
        self,
        spec: ReleaseSpec,
        contract: FeatureSetContract,
        *,
        features: FeatureLookup,
        models: ModelServer,
        feature_breaker: CircuitBreaker,
        model_breaker: CircuitBreaker,
        settings: ScorerSettings,
        on_scored: OnScored,
        on_model_lost: Callable[[], None],
    ) -> None:
        self.spec = spec
        self.contract = contract
        self.tensors = TensorBuilder(spec.signature)
        self.ready = False
        self.last_asked = 0.0
        """When a request last came, on time.monotonic; 0: never."""
        self._features = FeatureReader(features, contract, feature_breaker)
        self._models = models
        self._model_breaker = model_breaker
        self._cap_seconds = settings.cap_seconds
        self._on_scored = on_scored
        self._on_model_lost = on_model_lost
        self._batcher: Batcher[RoutedRequest, Scored] = Batcher(
            self._run,
            max_rows=min(settings.max_rows, spec.serving.placement.max_batch_rows),
            slots=settings.slots,
            max_slots=settings.max_slots,
            stall_seconds=settings.stall_seconds,
            size_of=lambda request: request.call.size_bytes,
        )

    @property
    def idle(self) -> bool:
        return self._batcher.idle

    @property
    def waiting(self) -> int:
        return self._batcher.waiting

    @property
    def utilisation(self) -> float:
        return self._batcher.utilisation

    def score(self, request: RoutedRequest, deadline: float) -> asyncio.Future[Scored]:
        """The future raises CannotScore, Expired or InvalidArgument. `deadline` is on the loop's clock."""
        self.last_asked = time.monotonic()
        return self._batcher.submit(request, deadline)

    async def close(self) -> None:
        await self._batcher.close()

    async def score_requests(
        self,
        requests: list[RoutedRequest],
        budget: float,
        wanted: Callable[[int], bool] = lambda _: True,
    ) -> ScoredRequests:
        """Looks the features up and runs the model, within `budget` seconds, on the requests whose index is
        `wanted` after the lookup. Raises CannotScore when the model cannot score."""
        began = time.perf_counter()
        features = await self._features.read(requests, budget)
        if features.block is None:
            return ScoredRequests(None, features.rows, features.errors)
        places: list[int] = features.rows.tolist()
        block, errors = features.block, dict(features.errors)
        if not all(map(wanted, places)):
            left = [row for row, place in enumerate(places) if wanted(place)]
            errors.update(
                (place, BudgetExceeded("the caller had its answer before the model was called"))
                for place in places
                if not wanted(place)
            )
            places = [places[row] for row in left]
            if not places:
                return ScoredRequests(None, np.zeros(0, np.intp), errors)
            block = block.take(np.array(left, np.intp))
        spent = time.perf_counter() - began
        thresholds = thresholds_of(self.spec, (requests[place] for place in places))
        scored = await self.score_block(block, thresholds, budget - spent, spent * 1e3)
        if not errors and not scored.errors:
            return scored
        errors.update((places[row], error) for row, error in scored.errors.items())
        return ScoredRequests(scored.batch, np.array(places, np.intp)[scored.rows], errors)

    async def score_block(
        self, block: FeatureBlock, thresholds: Sequence[float], budget: float, features_ms: float = 0.0
    ) -> ScoredRequests:
        """Runs the model on features that were looked up before. A row that its tensors cannot hold, or that
        the release's feature policies refuse, fails alone. `thresholds`: of each row; empty: the release's.
        Raises CannotScore."""
        began = time.perf_counter()
        try:
            prepared = prepare(self.spec.policies, self.tensors, block)
        except MissingFeature as error:
            raise FeaturesIncomplete(str(error)) from None
        tensors, rows = prepared.tensors, prepared.rows
        errors: dict[int, FlywheelError] = {}
        if prepared.refused:
            errors |= {row: _REFUSED[why.reason](why.message) for row, why in prepared.refused.items()}
            if not len(rows):
                return ScoredRequests(None, rows, errors)
            block = block.take(rows)
            thresholds = [thresholds[row] for row in rows.tolist()] if thresholds else ()
        raw = await self._infer(tensors, budget)
        values = self.spec.calibration.apply(raw)
        scores = self.spec.scores(values)
        batch = ScoredBatch(
            block,
            values,
            scores,
            self.spec.decisions(scores, thresholds),
            np.logical_or.reduce(block.statuses != PRESENT, axis=0),
            features_ms,
            (time.perf_counter() - began) * 1e3,
        )
        return ScoredRequests(batch, rows, errors)

    async def _infer(self, tensors: Tensors, budget: float) -> Array:
        if not self.ready or not self._model_breaker.allows(time.monotonic()):
            raise ModelUnavailable("the model is not loaded, or its circuit breaker is open")
        if budget <= 0:
            raise BudgetExceeded("no time is left for the model")
        try:
            raw = await self._infer_parts(tensors, budget)
        except FlywheelError as error:
            self._model_breaker.failed(time.monotonic())
            if isinstance(error, NotFound):
                self.ready = False
                self._on_model_lost()
            cause = BudgetExceeded if isinstance(error, DeadlineExceeded) else ModelUnavailable
            raise cause(error.message) from None
        self._model_breaker.succeeded()
        return raw

    async def _infer_parts(self, tensors: Tensors, budget: float) -> Array:
        """One call, or several when the model gets fewer rows at once: copies for a shadow come in batches of
        the champion."""
        name, output = self.spec.triton_model, self.spec.signature.output
        rows, at_once = len(next(iter(tensors.values()))), self.spec.serving.placement.max_batch_rows
        if rows <= at_once:
            return await self._models.infer(name, tensors, output, budget)
        until, found = time.monotonic() + budget, []
        for start in range(0, rows, at_once):
            part = {tensor: values[start : start + at_once] for tensor, values in tensors.items()}
            left = max(until - time.monotonic(), 0.0)
            found.append(await self._models.infer(name, part, output, left))
        return np.concatenate(found)

    async def _run(self, entries: list[Entry[RoutedRequest, Scored]]) -> Sequence[Scored | Exception]:
        sent = time.perf_counter()
        requests = [entry.item for entry in entries]
        # The dependencies get the time limit of the batch, not the callers' deadlines: a call that a caller's
        # deadline cut short would count as a failure of the dependency. Callers get `Expired` in time anyway.
        scored = await self.score_requests(requests, self._cap_seconds, lambda place: entries[place].live)
        results: list[Scored | Exception | None] = [scored.errors.get(i) for i in range(len(requests))]
        batch = scored.batch
        if batch is None:
            return [r for r in results if r is not None]
        answered: list[int] = []
        rows = zip(
            scored.rows.tolist(),
            batch.scores.tolist(),
            batch.decisions.tolist(),
            batch.finite.tolist(),
            batch.flagged.tolist(),
            strict=True,
        )
        for row, (place, score, decision, finite, flagged) in enumerate(rows):
            if not finite:
                results[place] = BadScore("the model returned a value that is not finite")
                continue
            entry = entries[place]
            if entry.live:
                answered.append(row)
            queue_ms = (sent - entry.item.started) * 1e3
            results[place] = Scored(score, decision, batch, row, flagged, queue_ms)
        if len(answered) == len(requests):
            self._on_scored(self, requests, batch)
        elif answered:
            in_batch = [requests[scored.rows[row]] for row in answered]
            self._on_scored(self, in_batch, batch.take(np.array(answered)))
        return [r for r in results if r is not None]
