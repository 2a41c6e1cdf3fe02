"""A gateway with a real feature service, a real Triton and a real Kafka, in the TENSOR layout."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

import flywheel as fw
from flywheel_common import columns
from flywheel_common.grpc.server import Server
from flywheel_common.kafka import topics
from flywheel_common.signature import BOOL, FLOAT32, FLOAT32_VECTOR, InputSpec, Signature
from flywheel_local.kafka import Kafka
from flywheel_local.triton import Triton
from flywheel_protos.feature.v1 import feature_pb2, feature_pb2_grpc
from tests.support.builders.inference import expected_score, onnx_model
from tests.support.builders.kinds import KindModel
from tests.support.peers.inference import feature_server, kind_release
from tests.support.servers.feature import client, environment, server
from tests.support.servers.inference import Deployment

__all__ = ["client", "environment", "server"]

pytestmark = pytest.mark.timeout(120)

T0 = datetime(2013, 3, 1, 12, tzinfo=UTC)
SCHEMA = {
    "carrier": fw.STRING,
    "at": fw.TIMESTAMP,
    "delay": fw.FLOAT32,
    "late": fw.BOOL,
    "route": fw.vector(2),
}
ROWS: dict[str, tuple[float | None, bool | None, list[float] | None]] = {
    "UA": (0.1, True, [0.25, -1.5]),
    "DL": (None, False, [3.0, 0.0]),
    "AA": (-7.25, None, None),
}
"""Carrier → its features; another carrier has none."""
ABSENT = (None, None, None)
W = (0.5, -0.25, 1.0, 0.125)
PRESENT, NULL, NOT_FOUND = "PRESENT", "NULL", "NOT_FOUND"


class Relay(feature_pb2_grpc.FeatureServiceServicer):
    """Forwards to a feature service; keeps the layouts asked for, and counts answers with a tensor."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = feature_pb2_grpc.FeatureServiceStub(channel)
        self.layouts: set[int] = set()
        self.answers = self.tensors = 0

    async def GetFeatureSet(self, request: Any, context: Any) -> Any:
        return await self._stub.GetFeatureSet(request)

    async def GetOnlineFeatures(self, request: Any, context: Any) -> Any:
        answer = await self._stub.GetOnlineFeatures(request)
        self.layouts.add(request.layout)
        self.answers += 1
        self.tensors += answer.HasField("tensor")
        return answer


@pytest.fixture
async def relay(server: Server) -> AsyncIterator[Relay]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield Relay(channel)


@pytest.fixture
async def deployment(relay: Relay, tmp_path: Path, triton: Triton, kafka: Kafka) -> AsyncIterator[Deployment]:
    async with AsyncExitStack() as stack:
        settings: dict[str, Any] = {"triton_url": triton.grpc_url, "kafka_bootstrap": kafka.bootstrap}
        started = Deployment(stack, state_dir=tmp_path / "state", **settings)
        started.feature_server = feature_server(relay)
        await started.start()
        yield started


async def feature_set(client: fw.Client, bucket: str) -> str:
    """Applies the definitions and pushes ROWS; returns the name of the feature set's version."""
    source = fw.ParquetSource("carriers", SCHEMA, timestamp="at", uri=f"s3://{bucket}/carriers/")
    carrier = fw.Entity("carrier", {"carrier": fw.STRING})
    kinds = {name: SCHEMA[name] for name in ("delay", "late", "route")}
    view = fw.BatchView("hist", carrier, source, kinds)
    await client.apply(fw.compile_definitions([view, fw.FeatureSet("carriers", ["hist:*"])], "default"))
    delays, lates, routes = zip(*ROWS.values(), strict=True)
    pushed = await client.push(
        "views/hist",
        {
            "carrier": list(ROWS),
            "at": [T0] * len(ROWS),
            "delay": list(delays),
            "late": list(lates),
            "route": list(routes),
        },
        SCHEMA,
    )
    assert pushed.accepted_count == len(ROWS)
    return "projects/default/featureSets/carriers/versions/1"


def release(deployment: Deployment, feature_set: str) -> Any:
    """A release whose model has one float32 tensor of the four elements of the features."""
    inputs = (
        InputSpec("hist__delay", FLOAT32),
        InputSpec("hist__late", BOOL),
        InputSpec("hist__route", FLOAT32_VECTOR, vector_size=2),
    )
    rows = np.array([[1, 0, 2, 0], [0.5, 1, -1, np.nan]], np.float32)
    model = KindModel(onnx_model(W, 0.0), Signature(inputs), {"INPUT": rows})
    found = kind_release(deployment.registry, 1, model, threshold=0.5)
    found.release.feature_set = found.model_version.feature_set = feature_set
    return found


def inputs_of(row: tuple[float | None, bool | None, list[float] | None]) -> list[float]:
    """The elements of the model's tensor: float32, NaN for nulls."""
    delay, late, route = row
    values = [delay, late, *(route or [None, None])]
    return [float("nan") if value is None else float(np.float32(value)) for value in values]


async def test_scores_and_log_rows_follow_from_the_stored_features(
    deployment: Deployment, client: fw.Client, relay: Relay, bucket: str
) -> None:
    gateway = await deployment.gateway_serving(release(deployment, await feature_set(client, bucket)))
    carriers = [*ROWS, "ZZ", *ROWS, "ZZ", *ROWS]

    answers = await asyncio.gather(*(gateway.predict(carrier, include_features=True) for carrier in carriers))
    assert relay.layouts == {feature_pb2.ANSWER_LAYOUT_TENSOR}
    assert 0 < relay.tensors == relay.answers
    for carrier, answer in zip(carriers, answers, strict=True):
        row = ROWS.get(carrier, ABSENT)
        assert not answer.degraded, answer.degraded_reason
        assert answer.score == pytest.approx(expected_score(W, 0.0, inputs_of(row)), abs=1e-5)
        absent = NULL if carrier in ROWS else NOT_FOUND
        wanted = {
            name: PRESENT if value is not None else absent
            for name, value in zip(("hist__delay", "hist__late", "hist__route"), row, strict=True)
        }
        assert {feature.name: feature.status for feature in answer.features} == wanted

    logged = await deployment.logged(topics.PREDICTION_LOGGED, {a.prediction_id for a in answers})
    for carrier, answer in zip(carriers, answers, strict=True):
        ((_, batch, place),) = logged[answer.prediction_id]
        assert np.frombuffer(batch.scores, "<f8")[place] == answer.score
        for column, value in zip(batch.features.columns, ROWS.get(carrier, ABSENT), strict=True):
            values, valid = columns.to_numpy(column, len(batch.prediction_ids))
            assert valid[place] == (value is not None)
            if value is not None:
                np.testing.assert_array_equal(values[place], np.asarray(value, values.dtype))
