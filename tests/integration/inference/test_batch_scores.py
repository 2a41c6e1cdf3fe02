"""A SCORE job and the gateway give equal answers; the gateway serves what the job has cached."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
import pytest
from google.protobuf.duration_pb2 import Duration
from pyarrow import fs

from flywheel_common import columns
from flywheel_common.signature import OutputKind
from flywheel_job.batch_scoring.spec import CACHE_URL
from flywheel_protos.events.v1 import prediction_pb2
from flywheel_protos.registry.v1 import model_pb2
from flywheel_protos.types.v1 import value_pb2 as types
from tests.support.builders.kinds import KINDS
from tests.support.peers.inference import kind_release
from tests.support.scoring_job import read_predictions, scoring_job, write_table
from tests.support.servers.inference import Deployment
from tests.support.training_job import run_here

ROWS = [("UA", 0.5), ("DL", -1.25), ("ü|\\", 2.0), ("NEW", 3.5), ("UA", 1e-3), ("DL", 40.0)]
"""Carrier and miles. NEW has no delay."""
DELAYS = {"UA": 2.0, "DL": -1.0, "ü|\\": 0.125}
Calibration = model_pb2.Calibration
CALIBRATIONS = {
    "binary": Calibration(isotonic=Calibration.Isotonic(x=[0.1, 0.4, 0.9], y=[0.05, 0.5, 0.97])),
    "multiclass": Calibration(temperature=Calibration.Temperature(temperature=1.7)),
}


def extra_features(carriers: list[str], fields: Any) -> list[Any]:
    """The features of the binary model that the stand-in lacks."""
    miles = fields["miles"][0]
    return [
        columns.from_texts("m__text", carriers),
        columns.from_numpy("m__count", np.trunc(miles).astype(np.int64)),
        columns.from_numpy("m__flag", np.array([carrier == "UA" for carrier in carriers])),
        columns.from_numpy("m__vector", _vectors(miles), data_type=types.DATA_TYPE_FLOAT32_VECTOR),
    ]


def _vectors(miles: Any) -> Any:
    return np.stack([miles, miles / 2, np.ones(len(miles))], axis=1).astype(np.float32)


def joined_table(now: datetime) -> pa.Table:
    """ROWS with the features that the feature service would join."""
    carriers, miles = [carrier for carrier, _ in ROWS], np.array([miles for _, miles in ROWS])
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(_vectors(miles).reshape(-1)), 3)
    return pa.table(
        {
            "carrier": carriers,
            "event_timestamp": pa.array([now] * len(ROWS), pa.timestamp("us", "UTC")),
            "miles": miles,
            "m__text": carriers,
            "m__count": np.trunc(miles).astype(np.int64),
            "m__flag": [carrier == "UA" for carrier in carriers],
            "m__vector": vectors,
            "hist__delay": pa.array([DELAYS.get(carrier) for carrier in carriers], pa.float64()),
            "trip__miles": miles,
        }
    )


@pytest.mark.parametrize("kind", KINDS)
async def test_batch_and_gateway_give_equal_answers(
    deployment: Deployment,
    kind: str,
    redis_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deployment.features.delays, deployment.features.extra = dict(DELAYS), extra_features
    model, output = KINDS[kind](), KINDS[kind]().signature.output
    policy = model_pb2.FeaturePolicy(
        feature="hist__delay",
        missing=model_pb2.FEATURE_ACTION_DEFAULT,
        default_value=types.Value(double_value=0.75),
    )
    release = kind_release(
        deployment.registry,
        1,
        model,
        threshold=0.45,
        segment_keys=["carrier"],
        segment_thresholds={"carrier=DL": 0.2},
        calibration=CALIBRATIONS.get(kind),
        feature_policies=[policy],
        fallback=model_pb2.Fallback(cached_max_age=Duration(seconds=3600)),
    )
    gateway = await deployment.gateway_serving(release, redis_url=redis_url, answer_reserve_seconds=0.5)
    online = await asyncio.gather(*(gateway.predict(carrier, miles) for carrier, miles in ROWS))

    store = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    write_table(store, joined_table(datetime.now(UTC)))
    job = scoring_job(store, release, {"model.onnx": model.file}, cache_ttl_seconds=600)
    monkeypatch.setenv(CACHE_URL, redis_url)
    outcome = await asyncio.to_thread(run_here, job, store)
    assert outcome.succeeded, outcome.error_message
    batch = read_predictions(store)

    for answer, row in zip(online, batch, strict=True):
        assert not answer.degraded and row["error_reason"] is None
        assert list(answer.values) == pytest.approx(row.get("values", []), abs=1e-6)
        assert answer.predicted_class == (row.get("predicted_class") or "")
        if output.kind is not OutputKind.VECTOR:
            assert answer.score == pytest.approx(row["score"], abs=1e-6)
        assert answer.decision == row.get("decision", False)

    # Of two rows of a carrier with the same time, the later one is cached.
    last = {row["carrier"]: answer for row, answer in zip(batch, online, strict=True)}
    deployment.features.outage = grpc.StatusCode.UNAVAILABLE
    for carrier, expected in last.items():
        cached = await gateway.predict(carrier, 0.0)
        assert cached.source == prediction_pb2.PREDICTION_SOURCE_CACHED, carrier
        assert cached.score == pytest.approx(expected.score, abs=1e-6)
        assert list(cached.values) == pytest.approx(list(expected.values), abs=1e-6)
        assert (cached.decision, cached.predicted_class) == (expected.decision, expected.predicted_class)
