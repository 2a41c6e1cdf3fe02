"""One release at work: a batch of requests → one feature lookup → one model call → calibrated scores."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flywheel_common.arrays import Floats
from flywheel_common.errors import DeadlineExceeded, FlywheelError, InvalidArgument, NotFound
from flywheel_inference.batching.batcher import BadBatch, Coalescer, Entry
from flywheel_inference.fallback import choice
from flywheel_inference.fallback.choice import CannotScore
from flywheel_inference.fallback.circuit_breaker import Breaker
from flywheel_inference.models.feature_block import PRESENT, FeatureBlock, join
from flywheel_inference.models.input_tensor import MissingFeature, TensorBuilder
from flywheel_inference.models.ports import ModelServer
from flywheel_inference.releases.release import Contract, ReleaseSpec
from flywheel_inference.requests.request import Item
from flywheel_inference.scoring.ports import FeatureLookup


@dataclass(frozen=True, slots=True)
class ScoredBatch:
    """A batch that the model answered. Times in milliseconds."""

    block: FeatureBlock
    scores: Floats
    decisions: npt.NDArray[np.bool_]
    flagged: npt.NDArray[np.bool_]
    features_ms: float
    model_ms: float


@dataclass(frozen=True, slots=True)
class Scored:
    """One row of it. `flagged`: a feature of the row was not PRESENT."""

    score: float
    decision: bool
    batch: ScoredBatch
    row: int
    flagged: bool
    queue_ms: float


@dataclass(frozen=True, slots=True)
class LaneSettings:
    """`cap_seconds` bounds feature lookup and model call of one batch together; after `stall_seconds` another batch may
    go out beside it."""

    max_rows: int = 256
    slots: int = 1
    max_slots: int = 8
    stall_seconds: float = 0.05
    cap_seconds: float = 0.25


OnScored = Callable[["Lane", list[Item], ScoredBatch], None]
"""Told, before the callers are, which requests a batch answers (rows in the order of the batch's arrays)."""


class Lane:
    """A loaded release and its coalesced requests."""

    def __init__(
        self,
        spec: ReleaseSpec,
        contract: Contract,
        *,
        features: FeatureLookup,
        models: ModelServer,
        feature_breaker: Breaker,
        model_breaker: Breaker,
        settings: LaneSettings,
        on_scored: OnScored,
        on_lost: Callable[[], None],
    ) -> None:
        self.spec = spec
        self.contract = contract
        self.ready = False
        self._features = features
        self._models = models
        self._feature_breaker = feature_breaker
        self._model_breaker = model_breaker
        self._settings = settings
        self._on_scored = on_scored
        self._on_lost = on_lost
        self._tensors = TensorBuilder(spec.inputs)
        self._coalescer: Coalescer[Item, Scored] = Coalescer(
            self._run,
            max_rows=settings.max_rows,
            slots=settings.slots,
            max_slots=settings.max_slots,
            stall_seconds=settings.stall_seconds,
        )

    @property
    def idle(self) -> bool:
        return self._coalescer.idle

    @property
    def waiting(self) -> int:
        return self._coalescer.waiting

    @property
    def tensors(self) -> TensorBuilder:
        return self._tensors

    def score(self, item: Item, deadline: float) -> asyncio.Future[Scored]:
        """Raises (in the future) CannotScore, Expired, InvalidArgument. `deadline` is on the loop's clock."""
        return self._coalescer.submit(item, deadline)

    async def close(self) -> None:
        await self._coalescer.close()

    async def _run(self, entries: list[Entry[Item, Scored]]) -> Sequence[Scored | Exception]:
        sent = time.perf_counter()
        left = max(entry.deadline for entry in entries) - asyncio.get_running_loop().time()
        items = [entry.item for entry in entries]
        try:
            batch = await self.score_items(items, min(left, self._settings.cap_seconds))
        except InvalidArgument as error:
            raise BadBatch(error) from error
        finite = np.isfinite(batch.scores)
        results: list[Scored | Exception] = []
        answered: list[int] = []
        rows = zip(
            entries,
            batch.scores.tolist(),
            batch.decisions.tolist(),
            finite.tolist(),
            batch.flagged.tolist(),
            strict=True,
        )
        for row, (entry, score, decision, good, flagged) in enumerate(rows):
            if not good:
                results.append(CannotScore(choice.BAD_SCORE, "the model answered a score that is no number"))
                continue
            if entry.live:
                answered.append(row)
            results.append(Scored(score, decision, batch, row, flagged, (sent - entry.item.started) * 1e3))
        if answered:
            self._on_scored(self, *_part(items, batch, answered))
        return results

    async def score_items(self, items: list[Item], budget: float) -> ScoredBatch:
        """Features, then the model, inside `budget` seconds. Raises CannotScore; InvalidArgument for a bad row."""
        began = time.perf_counter()
        block = await self._lookup(items, budget)
        return await self.score_block(
            block, budget - (time.perf_counter() - began), (time.perf_counter() - began) * 1e3
        )

    async def score_block(self, block: FeatureBlock, budget: float, features_ms: float = 0.0) -> ScoredBatch:
        """The model's answer to features that are there already. Raises CannotScore."""
        began = time.perf_counter()
        try:
            tensor = self._tensors.build(block)
        except MissingFeature as error:
            raise CannotScore(choice.FEATURES_INCOMPLETE, str(error)) from None
        now = time.monotonic()
        if not self.ready or not self._model_breaker.allows(now):
            raise CannotScore(choice.MODEL_UNAVAILABLE, "not loaded, or left alone after several failures")
        if budget <= 0:
            raise CannotScore(choice.BUDGET_EXCEEDED, "nothing was left for the model")
        try:
            raw = await self._models.infer(self.spec.triton_model, tensor, budget)
        except FlywheelError as error:
            self._model_breaker.failed(time.monotonic())
            if isinstance(error, NotFound):
                self.ready = False
                self._on_lost()
            late = isinstance(error, DeadlineExceeded)
            raise CannotScore(
                choice.BUDGET_EXCEEDED if late else choice.MODEL_UNAVAILABLE, error.message
            ) from None
        self._model_breaker.succeeded()
        scores = self.spec.calibration.apply(raw)
        model_ms = (time.perf_counter() - began) * 1e3
        flagged = (block.statuses != PRESENT).any(axis=0)
        return ScoredBatch(block, scores, scores >= self.spec.threshold, flagged, features_ms, model_ms)

    async def _lookup(self, items: list[Item], budget: float) -> FeatureBlock:
        if not self._feature_breaker.allows(time.monotonic()):
            raise CannotScore(choice.FEATURES_UNAVAILABLE, "left alone after several failures")
        if budget <= 0:
            raise CannotScore(choice.BUDGET_EXCEEDED, "nothing was left for the features")
        try:
            block = await self._lookup_by_time(items, budget)
        except InvalidArgument:
            self._feature_breaker.succeeded()
            raise
        except FlywheelError as error:
            self._feature_breaker.failed(time.monotonic())
            raise CannotScore(choice.FEATURES_UNAVAILABLE, error.message) from None
        self._feature_breaker.succeeded()
        return block

    async def _lookup_by_time(self, items: list[Item], budget: float) -> FeatureBlock:
        """One lookup per time asked for: nearly always one, because nearly everybody asks for now."""
        times: dict[int | None, list[int]] = {}
        for row, item in enumerate(items):
            times.setdefault(item.as_of_micros, []).append(row)
        if len(times) == 1:
            (as_of,) = times
            return await self._features.online(
                self.contract, [i.keys for i in items], [i.fields for i in items], as_of, budget
            )
        async with asyncio.TaskGroup() as group:
            lookups = [
                group.create_task(self._attempt([items[row] for row in rows], as_of, budget))
                for as_of, rows in times.items()
            ]
        answers = [lookup.result() for lookup in lookups]
        for answer in answers:
            if isinstance(answer, FlywheelError):
                raise answer
        block = join([answer for answer in answers if isinstance(answer, FeatureBlock)])
        return block.take(np.argsort(np.concatenate([np.array(rows) for rows in times.values()])))

    async def _attempt(
        self, items: list[Item], as_of: int | None, budget: float
    ) -> FeatureBlock | FlywheelError:
        try:
            return await self._features.online(
                self.contract, [i.keys for i in items], [i.fields for i in items], as_of, budget
            )
        except FlywheelError as error:
            return error


def _part(items: list[Item], batch: ScoredBatch, rows: list[int]) -> tuple[list[Item], ScoredBatch]:
    if len(rows) == len(items):
        return items, batch
    index = np.array(rows)
    part = ScoredBatch(
        batch.block.take(index),
        batch.scores[index],
        batch.decisions[index],
        batch.flagged[index],
        batch.features_ms,
        batch.model_ms,
    )
    return [items[row] for row in rows], part
