"""Models of every kind reproduce ONNX Runtime through Predict, v2, the log, shadow copies and the monitor."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import numpy as np
import pytest

from flywheel_common import columns
from flywheel_common.grpc.error_details import from_rpc_error
from flywheel_common.kafka import topics
from flywheel_common.signature import OutputKind
from flywheel_inference.routing.route import CHAMPION, SHADOW
from flywheel_monitor.ingest.decode import prediction_columns
from flywheel_protos.registry.v1 import model_pb2
from flywheel_protos.types.v1 import value_pb2 as types
from tests.support.builders.inference import MODEL, run_onnx
from tests.support.builders.kinds import CLASSES, KINDS, KindModel, mixed_binary
from tests.support.builders.monitor import REFERENCE
from tests.support.eventually import eventually
from tests.support.peers.inference import kind_release
from tests.support.servers.inference import Deployment
from tests.support.servers.monitor import memory_monitor
from tests.support.triton_client import tensor, texts, triton_client

ROWS = [("UA", 0.5), ("DL", -1.25), ("UA", 2.0), ("DL", 3.5)]
"""Carrier and miles of each request."""
DELAYS = {"UA": 2.0, "DL": -1.0}
"""The delays of the feature service stand-in."""


def extra_features(carriers: list[str], fields: Any) -> list[Any]:
    """The features of `mixed_binary`: the count is null for the carrier `NULL`."""
    miles = fields["miles"][0]
    valid = np.array([carrier != "NULL" for carrier in carriers])
    return [
        columns.from_texts("m__text", carriers),
        columns.from_numpy("m__count", np.trunc(miles).astype(np.int64), valid),
        columns.from_numpy("m__flag", np.array([carrier == "UA" for carrier in carriers])),
        columns.from_numpy(
            "m__vector",
            np.stack([miles, miles / 2, np.ones(len(carriers))], axis=1).astype(np.float32),
            data_type=types.DATA_TYPE_FLOAT32_VECTOR,
        ),
    ]


def expected(kind: str, model: KindModel) -> Any:
    """[rows, width] output of ONNX Runtime for the features of ROWS, given as arrays."""
    carriers = np.array([carrier for carrier, _ in ROWS], object)
    miles = np.array([miles for _, miles in ROWS])
    delays = np.array([DELAYS[carrier] for carrier in carriers])
    numbers = np.stack([delays, miles], axis=1)
    if kind == "binary":
        inputs = {
            "text": carriers[:, None],
            "count": np.trunc(miles).astype(np.int64),
            "flag": (carriers == "UA")[:, None],
            "vector": np.stack([miles, miles / 2, np.ones(len(miles))], axis=1).astype(np.float32),
            "wide": delays[:, None],
        }
        return run_onnx(model.file, inputs, "probabilities")[:, 1:]
    inputs = {"x": numbers} if kind == "regression" else {"INPUT": numbers.astype(np.float32)}
    found = run_onnx(model.file, inputs, model.signature.output.tensor)
    return found.reshape(len(found), -1)


@pytest.mark.parametrize("kind", KINDS)
async def test_answers_log_and_shadow_reproduce_onnx_runtime(
    deployment_with_kafka: Deployment, kind: str
) -> None:
    deployment = deployment_with_kafka
    deployment.features.extra = extra_features
    model = KINDS[kind]()
    output = model.signature.output
    wanted = expected(kind, model).astype(float)
    gateway = await deployment.gateway()
    await gateway.serves(
        deployment.registry.want(
            champion=kind_release(deployment.registry, 1, model, threshold=0.6),
            challenger=kind_release(deployment.registry, 2, model, threshold=0.6),
            rollout="projects/test/r",
            shadow_percent=100,
        )
    )
    answers = await asyncio.gather(*(gateway.predict(carrier, miles) for carrier, miles in ROWS))
    found = await deployment.logged(topics.PREDICTION_LOGGED, {a.prediction_id for a in answers}, each=2)
    for answer, values in zip(answers, wanted.tolist(), strict=True):
        assert not answer.degraded and answer.output_kind == output.kind
        if output.kind is OutputKind.MULTICLASS:
            best = int(np.argmax(values))
            assert answer.score == pytest.approx(values[best], abs=1e-5)
            assert list(answer.values) == pytest.approx(values, abs=1e-5)
            assert answer.predicted_class == (CLASSES[best] if values[best] >= 0.6 else "")
            assert answer.decision == (values[best] >= 0.6)
        elif output.kind is OutputKind.VECTOR:
            assert (answer.score, answer.decision, answer.predicted_class) == (0.0, False, "")
            assert list(answer.values) == pytest.approx(values, abs=1e-5)
        else:
            assert answer.score == pytest.approx(values[0], abs=1e-5)
            assert answer.decision == (output.kind is OutputKind.BINARY and values[0] >= 0.6)
            assert not answer.values and not answer.predicted_class
        by_role = {batch.role: (batch, row) for _, batch, row in found[answer.prediction_id]}
        assert set(by_role) == {CHAMPION, SHADOW}
        for batch, row in by_role.values():
            assert (batch.output_kind, batch.score_width) == (output.kind, output.width)
            assert tuple(batch.class_names) == output.class_names
            scores = np.frombuffer(batch.scores, "<f8").reshape(-1, output.width)
            assert len(scores) == len(batch.prediction_ids)
            assert scores[row].tolist() == pytest.approx(values, abs=1e-5)
            assert batch.decisions[row] == answer.decision
    batches = {id(batch): batch for rows in found.values() for _, batch, _ in rows}
    assert await scores_in_the_monitor(
        [batch for batch in batches.values() if batch.role == CHAMPION]
    ) == pytest.approx(monitored(output.kind, wanted), abs=1e-5)


async def scores_in_the_monitor(batches: list[Any]) -> tuple[int, float]:
    """How many predictions the monitor counts in these batches of version 1, and the mean of their scores."""
    monitor, version = memory_monitor(), f"{MODEL}/versions/1"
    monitor.references.known[version] = REFERENCE
    await monitor.predicted(*(prediction_columns(batch, batch.SerializeToString()) for batch in batches))
    found = await monitor.performance(version)
    return found.predictions, found.score_mean or 0.0


def monitored(kind: OutputKind, wanted: Any) -> tuple[int, float]:
    """The same, computed from the outputs of ONNX Runtime, [rows, width]."""
    if kind is OutputKind.VECTOR:
        return len(wanted), float(np.linalg.norm(wanted, axis=1).mean())
    return len(wanted), float(wanted.max(axis=1).mean())


async def test_a_row_that_a_tensor_cannot_hold_falls_back_alone(deployment: Deployment) -> None:
    deployment.features.extra = extra_features
    model = mixed_binary()
    release = kind_release(deployment.registry, 1, model, fallback={"default_score": 0.125})
    gateway = await deployment.gateway_serving(release)
    carriers = ["UA", "NULL", "DL", "NULL", "UA"]
    answers = await asyncio.gather(*(gateway.predict(carrier, 2.0) for carrier in carriers))
    assert [a.degraded_reason for a in answers] == ["", "INPUT_NOT_EXACT", "", "INPUT_NOT_EXACT", ""]
    assert [a.score for a in answers if a.degraded] == [0.125, 0.125]
    wanted = float(expected("binary", model)[ROWS.index(("UA", 2.0)), 0])
    assert [answers[0].score, answers[4].score] == pytest.approx([wanted] * 2, abs=1e-5)


async def test_policies_decide_what_the_model_gets_for_a_missing_feature(deployment: Deployment) -> None:
    model = KINDS["multiclass"]()
    registry = deployment.registry
    default: dict[str, Any] = {
        "feature": "hist__delay",
        "missing": model_pb2.FEATURE_ACTION_DEFAULT,
        "default_value": types.Value(double_value=-1.0),
    }
    gateway = await deployment.gateway_serving(kind_release(registry, 1, model, feature_policies=[default]))
    filled, present = await gateway.predict("ZZ", -1.25), await gateway.predict("DL", -1.25)
    assert list(filled.values) == pytest.approx(list(present.values), abs=1e-6)
    assert [(f.name, f.status, f.value.WhichOneof("kind")) for f in filled.features] == [
        ("hist__delay", "NOT_FOUND", None)
    ]
    fail = {"feature": "hist__delay", "missing": model_pb2.FEATURE_ACTION_FAIL}
    failing = kind_release(
        registry, 2, model, feature_policies=[fail], fallback={"default_values": [0.5, 0.25, 0.25]}
    )
    await gateway.serves(registry.want(champion=failing))
    answers = await asyncio.gather(*(gateway.predict(carrier, 2.0) for carrier in ("UA", "ZZ", "DL")))
    assert [a.degraded_reason for a in answers] == ["", "FEATURE_MISSING", ""]
    assert list(answers[1].values) == [0.5, 0.25, 0.25]


async def test_fallbacks_follow_the_kind(deployment: Deployment) -> None:
    registry = deployment.registry
    gateway = await deployment.gateway()
    deployment.features.outage = grpc.StatusCode.UNAVAILABLE
    multiclass = kind_release(
        registry, 1, KINDS["multiclass"](), threshold=0.5, fallback={"default_values": [0.25, 0.625, 0.125]}
    )
    await gateway.serves(registry.want(champion=multiclass))
    answer = await gateway.predict()
    assert list(answer.values) == [0.25, 0.625, 0.125]
    assert (answer.score, answer.decision, answer.predicted_class) == (0.625, True, "on time")
    regression = kind_release(registry, 2, KINDS["regression"](), fallback={"default_score": -3.5})
    await gateway.serves(registry.want(champion=regression))
    answer = await gateway.predict()
    assert (answer.score, answer.decision, list(answer.values)) == (-3.5, False, [])
    vector = kind_release(registry, 3, KINDS["vector"](), fallback={"default_values": [1, 2, 3, 4]})
    await gateway.serves(registry.want(champion=vector))
    answer = await gateway.predict()
    assert (answer.score, list(answer.values), answer.degraded) == (0.0, [1, 2, 3, 4], True)


async def test_temperature_and_thresholds_of_segments_apply(deployment: Deployment) -> None:
    model = KINDS["multiclass"]()
    raw = expected("multiclass", model)[0]
    powers = raw.astype(float) ** (1 / 3.0)
    calibrated = powers / powers.sum()
    release = kind_release(
        deployment.registry,
        1,
        model,
        threshold=0.0,
        calibration=model_pb2.Calibration(temperature={"temperature": 3.0}),
        segment_keys=["carrier"],
        segment_thresholds={"carrier=UA": 0.9999},
    )
    gateway = await deployment.gateway_serving(release)
    first = await gateway.predict(*ROWS[0])
    assert list(first.values) == pytest.approx(calibrated.tolist(), abs=1e-5)
    assert (first.decision, first.predicted_class) == (False, "")
    other = await gateway.predict(*ROWS[1])
    assert other.decision and other.predicted_class in CLASSES


@pytest.mark.parametrize(
    ("kind", "change", "reason"),
    [
        ("multiclass", {"golden_shift": 0.01}, "GOLDEN_ROWS_MISMATCH"),
        ("vector", {"golden_shift": np.nan}, "GOLDEN_ROWS_MISMATCH"),
        ("regression", {"calibration": {"temperature": {"temperature": 2.0}}}, "temperature calibration"),
        ("multiclass", {"fallback": {"default_values": [0.5, 0.5]}}, "3 finite default values"),
    ],
)
async def test_a_release_that_does_not_fit_its_model_gets_no_traffic(
    deployment: Deployment, kind: str, change: dict[str, Any], reason: str
) -> None:
    gateway = await deployment.gateway()
    deployment.registry.want(champion=kind_release(deployment.registry, 1, KINDS[kind](), **change))

    async def refused() -> bool:
        status = await gateway.status()
        return status is not None and reason in status.failures.get(f"{MODEL}/releases/1", "")

    await eventually(refused, within=30)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await gateway.predict()
    assert from_rpc_error(caught.value).reason == "RELEASE_NOT_READY"


@pytest.mark.parametrize("kind", KINDS)
async def test_the_open_inference_protocol_reproduces_onnx_runtime(deployment: Deployment, kind: str) -> None:
    deployment.features.extra = extra_features
    model = KINDS[kind]()
    output = model.signature.output
    champion = kind_release(deployment.registry, 1, model, threshold=0.6)
    gateway = await deployment.gateway_serving(champion)
    async with triton_client(gateway) as client:
        declared = await client.get_model_metadata(MODEL, "1")
        datatypes = {tensor.name: tensor.datatype for tensor in declared.inputs}
        assert datatypes.keys() == model.tensors.keys()
        raw = await client.infer(
            MODEL,
            [tensor(name, values, datatypes[name]) for name, values in model.tensors.items()],
            model_version="1",
        )
        carriers, miles = zip(*ROWS, strict=True)
        predicted = await client.infer(
            MODEL,
            [
                texts("carrier", *carriers),
                tensor("miles", np.array(miles), "FP64"),
                texts("origin", *["JFK"] * len(ROWS)),
            ],
        )
    rows = len(next(iter(model.tensors.values())))
    of_file = model.output.reshape(rows, -1)
    wanted = of_file[:, 1:] if kind == "binary" else of_file
    np.testing.assert_allclose(raw.as_numpy(output.tensor), wanted, atol=1e-5)
    values = expected(kind, model).astype(float)
    if output.kind in (OutputKind.MULTICLASS, OutputKind.VECTOR):
        np.testing.assert_allclose(predicted.as_numpy("values"), values, atol=1e-5)
    else:
        np.testing.assert_allclose(predicted.as_numpy("score"), values[:, 0], atol=1e-5)
        assert predicted.as_numpy("values") is None
    if output.kind is OutputKind.MULTICLASS:
        best = [CLASSES[i] if row[i] >= 0.6 else "" for i, row in zip(values.argmax(1), values, strict=True)]
        assert predicted.as_numpy("predicted_class").tolist() == [name.encode() for name in best]
