"""EVALUATE and EXPORT jobs, submitted by the SDK and run on a real Ray cluster."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as sk

import flywheel as fw
from flywheel_common.config import S3Settings
from flywheel_common.storage.s3 import object_store
from flywheel_protos.registry.v1 import model_pb2
from flywheel_protos.types.v1 import value_pb2
from tests.support.builders.trainer import learnable_rows
from tests.support.evaluation_models import linear, network
from tests.support.peers.trainer import FEATURE_SET, MODEL, TRAINING_SET, Peers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(590)]
SIGNATURE = model_pb2.Signature(
    inputs=[
        model_pb2.SignatureInput(name="v__z", data_type=value_pb2.DATA_TYPE_FLOAT64),
        model_pb2.SignatureInput(name="v__b", data_type=value_pb2.DATA_TYPE_BOOL),
    ]
)
WEIGHTS, OLD = np.array([[-0.8], [0.7]]), np.array([[-0.1], [-0.7]])


def add_champion(peers: Peers, graph: bytes) -> str:
    """A version that production serves, with the calibration and threshold of its release."""
    version = peers.registry.add_version({"model.onnx": graph}, signature=SIGNATURE, feature_set=FEATURE_SET)
    release = model_pb2.Release(
        name=f"{MODEL}/releases/1",
        model_version=version,
        calibration=model_pb2.Calibration(platt=model_pb2.Calibration.Platt(slope=2.0, intercept=0.1)),
        threshold=0.4,
    )
    peers.registry.releases[release.name] = release
    peers.registry.production = release.name
    return version


def scores(weights: np.ndarray) -> np.ndarray:
    rows = learnable_rows(4000)
    z = rows["v__z"].to_numpy() * weights[0, 0] + rows["v__b"].to_numpy() * weights[1, 0]
    return np.asarray(1 / (1 + np.exp(-z)))


async def test_models_are_evaluated_and_exported_on_ray(
    client: Any, peers: Peers, s3_settings: S3Settings, bucket: str
) -> None:
    champion = add_champion(peers, linear(OLD, ["Sigmoid"]))
    report = {"calibration": {"slope": 1.0, "intercept": 0.0}, "threshold": 0.5}
    files = {"model.onnx": linear(WEIGHTS, ["Sigmoid"]), "report.json": json.dumps(report).encode()}
    version = peers.registry.add_version(files, signature=SIGNATURE)
    labels = learnable_rows(4000)["label"].to_numpy()

    run = await client.run_job(
        fw.EvaluateJob(
            experiment="late",
            model_version=version,
            training_set=TRAINING_SET,
            slices=["carrier"],
            bootstrap_samples=50,
            record_evidence=True,
        )
    )
    ours, theirs = scores(WEIGHTS), 1 / (1 + np.exp(-(2 * np.log(scores(OLD) / (1 - scores(OLD))) + 0.1)))
    assert run.metrics["auc"] == pytest.approx(sk.roc_auc_score(labels, ours), abs=1e-6)
    assert run.metrics["f1"] == pytest.approx(sk.f1_score(labels, ours >= 0.5), abs=1e-3)
    assert run.metrics["champion_log_loss"] == pytest.approx(sk.log_loss(labels, theirs), abs=1e-5)
    (recorded,) = peers.registry.evaluations
    assert (recorded.name, recorded.champion_version) == (version, champion)
    assert dict(recorded.values)["auc"] == run.metrics["auc"]
    (artifact,) = run.artifacts
    async with object_store(s3_settings) as store:
        found = json.loads(await store.get(artifact.uri.removeprefix(f"s3://{bucket}/")))
    assert {one["value"] for one in found["slices"]["carrier"]["values"]} == {"AA", "BB", "CC"}

    deep = peers.registry.add_version({"model.onnx": network((2, 32, 32, 1))}, signature=SIGNATURE)
    exported = await client.run_job(
        fw.ExportJob(
            experiment="late",
            model_version=deep,
            training_set=TRAINING_SET,
            format="INT8_STATIC",
            max_flip_share=0.1,
            max_log_loss_increase=0.05,
            max_auc_loss=0.05,
        )
    )
    assert sorted(one.name for one in exported.artifacts) == ["export.json", "model.onnx", "report.json"]
