"""Releases whose cached batch predictions answer, and what predictions cost."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from flywheel_common.kafka import topics
from flywheel_common.signature import OutputSpec
from flywheel_common.telemetry.meters import configure_metering
from flywheel_inference.fallback.choice import CachedPrediction
from flywheel_protos.events.v1 import prediction_pb2 as events
from tests.support.builders.inference import MODEL, expected_score
from tests.support.eventually import eventually
from tests.support.servers.inference import Gateway, MemoryDeployment

W = (0.5, -0.25, 1.0)
CACHED, DEFAULT = events.PREDICTION_SOURCE_CACHED, events.PREDICTION_SOURCE_DEFAULT
SOURCE_MODEL = events.PREDICTION_SOURCE_MODEL
NOW = {"seconds": 1_060}


async def in_cost_mode(deployment: MemoryDeployment, **policy: Any) -> Gateway:
    release = deployment.registry.release(1, W)
    release.release.fallback.cached_max_age.FromSeconds(60)
    serving = release.release.serving_policy
    serving.cost_mode.SetInParent()
    serving.cost_mode.real_time.add(field="miles", min=100.0)
    serving.cost_mode.real_time.add(field="carrier", values=["DL"])
    for part, values in policy.items():
        for name, value in values.items():
            setattr(getattr(serving, part), name, value)
    cached = CachedPrediction((0.875,), 1_050_000_000, OutputSpec().fingerprint)
    deployment.cached.predictions[MODEL, "UA"] = cached
    return await deployment.gateway_serving(release)


@pytest.mark.parametrize(
    ("carrier", "miles", "source"),
    [
        ("UA", 99.5, CACHED),
        ("UA", 100.0, SOURCE_MODEL),
        ("DL", 1.0, SOURCE_MODEL),
        ("WN", 99.5, DEFAULT),
        ("WN", 100.5, SOURCE_MODEL),
    ],
)
async def test_only_requests_that_fulfil_a_rule_reach_the_model(
    memory_deployment: MemoryDeployment, carrier: str, miles: float, source: int
) -> None:
    gateway = await in_cost_mode(memory_deployment)
    lookups = len(memory_deployment.features.batches)
    answer = await gateway.predict(carrier, miles, as_of=NOW, prediction_id="p")
    assert answer.source == source
    assert answer.degraded == (source == DEFAULT)
    assert answer.degraded_reason == ("NO_CACHED_PREDICTION" if source == DEFAULT else "")
    assert (len(memory_deployment.features.batches) - lookups == 1) == (source == SOURCE_MODEL)
    if source == CACHED:
        assert (answer.score, answer.decision) == (0.875, True)
    rows = (await memory_deployment.logged(topics.PREDICTION_LOGGED, {"p"}))["p"]
    ((_, batch, row),) = rows
    assert batch.sources[row] == source
    assert list(batch.error_reasons) == (["NO_CACHED_PREDICTION"] if source == DEFAULT else [])


async def test_an_old_batch_prediction_does_not_answer(memory_deployment: MemoryDeployment) -> None:
    gateway = await in_cost_mode(memory_deployment)
    answer = await gateway.predict("UA", as_of={"seconds": 1_111})
    assert (answer.source, answer.degraded_reason) == (DEFAULT, "NO_CACHED_PREDICTION")


async def test_the_log_has_the_cost_of_each_prediction(memory_deployment: MemoryDeployment) -> None:
    gateway = await in_cost_mode(memory_deployment, cost={"per_answer": 0.25, "per_model_second": 1000.0})
    cached = await gateway.predict("UA", as_of=NOW, prediction_id="cached")
    scored = await gateway.predict("UA", 100.0, as_of=NOW, prediction_id="scored")
    assert (cached.source, scored.source) == (CACHED, SOURCE_MODEL)
    found = await memory_deployment.logged(topics.PREDICTION_LOGGED, {"cached", "scored"})
    costs = {id_: float(np.frombuffer(batch.costs, "<f4")[row]) for id_, ((_, batch, row),) in found.items()}
    assert costs["cached"] == 0.25
    # A batch of one row has the whole time of the call to the model.
    assert costs["scored"] == pytest.approx(0.25 + scored.timing.model_ms, rel=1e-5)


@pytest.fixture
def measured() -> Iterator[InMemoryMetricReader]:
    reader = InMemoryMetricReader()
    metering = configure_metering("test", reader=reader)
    yield reader
    metering.close()
    configure_metering("test")


async def test_costs_and_predictions_are_counted_per_model(
    measured: InMemoryMetricReader, memory_deployment: MemoryDeployment
) -> None:
    gateway = await in_cost_mode(memory_deployment, cost={"per_answer": 0.25, "per_model_second": 1000.0})
    await gateway.predict("UA", as_of=NOW)
    await gateway.predict("UA", as_of=NOW)
    scored = await gateway.predict("UA", 100.0, as_of=NOW)
    data: Any = measured.get_metrics_data()
    (metrics,) = [scope.metrics for resource in data.resource_metrics for scope in resource.scope_metrics]
    points = {metric.name: metric.data.data_points for metric in metrics}
    ((cost,), (count,)) = (points[f"flywheel.inference.{name}"] for name in ("cost", "priced_predictions"))
    assert cost.attributes == count.attributes == {"flywheel.model": MODEL}
    assert count.value == 3
    assert cost.value == pytest.approx(3 * 0.25 + scored.timing.model_ms, rel=1e-5)


async def test_without_costs_the_log_has_none(memory_deployment: MemoryDeployment) -> None:
    gateway = await in_cost_mode(memory_deployment)
    await gateway.predict("UA", 100.0, prediction_id="free")
    ((_, batch, _),) = (await memory_deployment.logged(topics.PREDICTION_LOGGED, {"free"}))["free"]
    assert batch.costs == b""


async def test_a_rule_for_a_field_that_no_request_has_is_refused(memory_deployment: MemoryDeployment) -> None:
    release = memory_deployment.registry.release(1, W)
    release.release.serving_policy.cost_mode.real_time.add(field="amount", min=1.0)
    gateway = await memory_deployment.gateway()
    memory_deployment.registry.want(champion=release)

    async def reported() -> str:
        status = await gateway.status()
        return str(status.failures.get(release.release.name, "")) if status is not None else ""

    assert (await eventually(reported, within=10)).startswith("UNKNOWN_RULE_FIELD")


async def test_a_model_never_gets_more_rows_than_its_placement_allows(
    memory_deployment: MemoryDeployment,
) -> None:
    registry = memory_deployment.registry
    small = registry.release(2, W)
    small.release.serving_policy.placement.max_batch_rows = 2
    gateway = await memory_deployment.gateway()
    await gateway.serves(
        registry.want(
            champion=registry.release(1, W), challenger=small, rollout="projects/t/r", shadow_percent=100.0
        )
    )
    ids = {f"p{i}" for i in range(20)}
    requests = [gateway.predict("UA", float(i), prediction_id=f"p{i}") for i in range(20)]
    await asyncio.gather(*requests)
    rows = await memory_deployment.logged(topics.PREDICTION_LOGGED, ids, each=2)
    for i in range(20):
        scores = {batch.role: np.frombuffer(batch.scores, "<f8")[row] for _, batch, row in rows[f"p{i}"]}
        expected = expected_score(W, 0.0, (2.0, float(i), 0.0))
        assert scores == pytest.approx(dict.fromkeys(scores, expected), abs=1e-5)
        assert len(scores) == 2
