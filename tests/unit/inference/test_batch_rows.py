"""Batches are split, bisected, filtered and merged; every row keeps its own answer, for every kind."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel_common.arrays import Array
from flywheel_common.errors import FlywheelError, InvalidArgument
from flywheel_common.kafka.envelope import parse_event, payload_of
from flywheel_common.scoring.feature_block import FeatureBlock, FeatureColumn
from flywheel_common.scoring.input_tensors import Tensors
from flywheel_common.scoring.output_values import output_values
from flywheel_common.signature import FLOAT64, INT64, InputSpec, OutputKind, OutputSpec, Signature, TensorSpec
from flywheel_inference.batching.batcher import Expired
from flywheel_inference.encoding.prediction_events import prediction_records
from flywheel_inference.fallback.circuit_breaker import CircuitBreaker
from flywheel_inference.prediction.log_rows import log_rows
from flywheel_inference.prediction_log.rows import LogRows
from flywheel_inference.releases.release import FeatureSetContract, FieldSpec, GoldenRows, ReleaseSpec
from flywheel_inference.releases.rollout_step import NO_ROLLOUT
from flywheel_inference.requests.request import PredictCall, RoutedRequest
from flywheel_inference.scoring.scored import ScoredBatch
from flywheel_inference.scoring.scorer import OnScored, ReleaseScorer, ScorerSettings
from flywheel_protos.events.v1.prediction_pb2 import PredictionBatch

CONTRACT = FeatureSetContract("fs", (FieldSpec("key", INT64),), ())
OUTPUTS = {
    "binary": OutputSpec(),
    "multiclass": OutputSpec(OutputKind.MULTICLASS, class_names=("a", "b", "c")),
    "regression": OutputSpec(OutputKind.REGRESSION),
    "vector": OutputSpec(OutputKind.VECTOR, size=5),
}
SIGNATURE_INPUTS = (InputSpec("a__x", FLOAT64, tensor="x"), InputSpec("a__n", INT64, tensor="n"))
TENSORS = (TensorSpec("x", FLOAT64, (1,)), TensorSpec("n", INT64, ()))


def values_of(key: int, width: int) -> list[float]:
    """The answer of the model below for a key."""
    return [key * 1.5 + 100.0 * key + column for column in range(width)]


class Features:
    """Features of integer keys; `refused` keys fail their lookup, `null` keys have a null a__n."""

    def __init__(self, refused: set[int], null: set[int]) -> None:
        self._refused = refused
        self._null = null
        self.answers: asyncio.Event | None = None

    async def online(self, contract: Any, keys: Any, fields: Any, as_of: Any, timeout: float) -> FeatureBlock:
        await asyncio.sleep(0)
        if self.answers is not None:
            await self.answers.wait()
        numbers = [key for (key,) in keys]
        if not self._refused.isdisjoint(numbers):
            raise InvalidArgument("refused")
        valid = np.array([number not in self._null for number in numbers])
        columns = (
            FeatureColumn("a__n", INT64, np.array(numbers, np.int64), valid),
            FeatureColumn("a__x", FLOAT64, np.array(numbers) * 1.5, np.ones(len(numbers), np.bool_)),
        )
        return FeatureBlock("fs", columns, np.ones((2, len(numbers)), np.uint8))


class Models:
    """A model server whose answer for each row follows from the row; keys in `bad` get NaN in one column."""

    def __init__(self, bad: set[int]) -> None:
        self._bad = bad
        self.seen: list[int] = []

    async def infer(self, name: str, tensors: Tensors, output: OutputSpec, timeout: float) -> Array:
        await asyncio.sleep(0)
        numbers = tensors["n"]
        self.seen += numbers.tolist()
        assert tensors["x"].shape == (len(numbers), 1)
        found = tensors["x"] + 100.0 * numbers[:, None] + np.arange(output.width)
        found[np.isin(numbers, list(self._bad)), -1] = np.nan
        return output_values(output, found, len(numbers))


def request(key: int, as_of: int | None) -> RoutedRequest:
    return RoutedRequest(
        call=cast("PredictCall", SimpleNamespace(size_bytes=10)),
        contract=CONTRACT,
        prediction_id=f"id-{key}",
        keys=(key,),
        fields=(),
        as_of_micros=as_of,
        event_micros=key,
        subject=f"s{key}",
        segment_keys=(),
        started=0.0,
    )


async def score_all(
    output: OutputSpec, keys: Sequence[int], features: Features, models: Models, max_rows: int, times: int
) -> tuple[list[list[float] | str], list[LogRows]]:
    """The values or the error of each key, and the rows for the log."""
    logged: list[LogRows] = []

    def on_scored(scorer: ReleaseScorer, requests: list[RoutedRequest], batch: ScoredBatch) -> None:
        logged.append(
            log_rows(
                scorer,
                requests,
                role=1,
                step=NO_ROLLOUT,
                block=batch.block,
                values=batch.values,
                decisions=batch.decisions,
                sources=np.ones(len(requests), np.uint8),
                latencies_ms=np.zeros(len(requests), np.float32),
            )
        )

    scorer = scorer_of(output, features, models, max_rows, on_scored)
    deadline = asyncio.get_running_loop().time() + 30.0
    futures = [scorer.score(request(key, key % times or None), deadline) for key in keys]
    found: list[list[float] | str] = []
    for future in futures:
        try:
            found.append((await future).values)
        except FlywheelError as error:
            found.append(error.reason)
    await scorer.close()
    return found, logged


def scorer_of(
    output: OutputSpec, features: Features, models: Models, max_rows: int, on_scored: OnScored
) -> ReleaseScorer:
    spec = ReleaseSpec(
        name="r",
        digest="",
        model="m",
        model_version="v",
        triton_model="t",
        feature_set="fs",
        signature=Signature(SIGNATURE_INPUTS, TENSORS, output),
        artifacts=(),
        golden=GoldenRows({}, np.zeros((0, output.width))),
    )
    scorer = ReleaseScorer(
        spec,
        CONTRACT,
        features=cast("Any", features),
        models=cast("Any", models),
        feature_breaker=CircuitBreaker(threshold=5, open_seconds=1.0),
        model_breaker=CircuitBreaker(threshold=5, open_seconds=1.0),
        settings=ScorerSettings(max_rows=max_rows, slots=2, cap_seconds=30.0),
        on_scored=on_scored,
        on_model_lost=lambda: None,
    )
    scorer.ready = True
    return scorer


def logged_values(rows: list[LogRows], output: OutputSpec, max_bytes: int) -> dict[str, list[float]]:
    """The values by prediction id, from the encoded records of all rows as one group."""
    found = {}
    for record in prediction_records(rows, 3, max_bytes) if rows else []:
        batch = payload_of(parse_event(record.value), PredictionBatch)
        values = np.frombuffer(batch.scores, "<f8").reshape(-1, batch.score_width)
        assert (batch.output_kind, batch.score_width) == (output.kind, output.width)
        assert len(values) == len(batch.prediction_ids) == len(batch.decisions)
        found |= dict(zip(batch.prediction_ids, values.tolist(), strict=True))
    return found


KEYS = st.sets(st.integers(0, 39), max_size=5)


@settings(max_examples=60)
@given(
    kind=st.sampled_from(sorted(OUTPUTS)),
    keys=st.permutations(range(40)).map(lambda keys: keys[:25]),
    refused=KEYS,
    null=KEYS,
    bad=KEYS,
    limits=st.tuples(st.integers(1, 30), st.integers(1, 3), st.integers(900, 20_000)),
)
def test_rows_keep_their_answers(
    kind: str,
    keys: list[int],
    refused: set[int],
    null: set[int],
    bad: set[int],
    limits: tuple[int, int, int],
) -> None:
    """`limits`: rows of a batch, event times of the requests, bytes of a record."""
    output = OUTPUTS[kind]
    max_rows, times, max_bytes = limits
    features, models = Features(refused, null), Models(bad)
    found, rows = asyncio.run(score_all(output, keys, features, models, max_rows, times))
    expected: list[list[float] | str] = []
    for key in keys:
        if key in refused:
            expected.append(InvalidArgument.reason)
        elif key in null:
            expected.append("INPUT_NOT_EXACT")
        else:
            expected.append("BAD_SCORE" if key in bad else values_of(key, output.width))
    assert found == expected
    logged = logged_values(rows, output, max_bytes)
    scored = {f"id-{k}": v for k, v in zip(keys, expected, strict=True) if isinstance(v, list)}
    assert logged == scored


async def test_cancelled_and_expired_requests_do_not_reach_the_model() -> None:
    features, models = Features(set(), set()), Models(set())
    features.answers = asyncio.Event()
    logged: list[str] = []
    scorer = scorer_of(
        OutputSpec(),
        features,
        models,
        8,
        lambda scorer, requests, batch: logged.extend(r.prediction_id for r in requests),
    )
    now = asyncio.get_running_loop().time()
    futures = [scorer.score(request(key, None), now + (0.02 if key == 2 else 30.0)) for key in range(4)]
    await asyncio.sleep(0.05)
    futures[1].cancel()
    features.answers.set()
    assert (await futures[0]).values == values_of(0, 1)
    assert (await futures[3]).values == values_of(3, 1)
    with pytest.raises(Expired):
        await futures[2]
    await scorer.close()
    assert (models.seen, logged) == ([0, 3], ["id-0", "id-3"])
