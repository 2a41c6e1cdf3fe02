"""An unmodified tritonclient against the gateway: released models with entity keys, versions with tensors."""

from __future__ import annotations

import asyncio
import queue
import time
from pathlib import Path
from typing import Any

import grpc
import jwt
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from flywheel_common.grpc.error_details import from_rpc_error
from flywheel_common.kafka import topics
from flywheel_protos.inference.v1 import inference_pb2
from flywheel_protos.registry.v1 import model_pb2
from flywheel_protos.types.v1 import value_pb2
from tests.support.builders.inference import MODEL, ORIGINS, expected_score
from tests.support.servers.inference import Deployment, Gateway, MemoryDeployment
from tests.support.triton_client import tensor, texts, triton_client

W = (0.5, -0.25, 1.0)
VERSION = f"{MODEL}/versions/101"


def flights(miles: list[float], **extra: str) -> list[tritonclient.grpc.InferInput]:
    """Rows of carrier UA from JFK."""
    rows = len(miles)
    return [
        texts("carrier", *["UA"] * rows),
        tensor("miles", np.array(miles), "FP64"),
        texts("origin", *["JFK"] * rows),
        *(texts(name, *[value] * rows) for name, value in extra.items()),
    ]


async def serving(deployment: Deployment, **settings: Any) -> Gateway:
    return await deployment.gateway_serving(deployment.registry.release(101, W), **settings)


async def refusal(call: Any) -> tuple[str, str]:
    """Status and reason of a call of a stub."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = from_rpc_error(caught.value)
    return error.code.name, error.reason


async def test_infer_honours_the_priority_in_the_header(memory_deployment: MemoryDeployment) -> None:
    # A gateway of one place keeps it for the highest class.
    shares = {"low_priority_share": 0.0, "normal_priority_share": 0.0}
    gateway = await serving(memory_deployment, max_in_flight=1, **shares)
    async with triton_client(gateway) as client:
        for priority in ("low", "normal", "other"):
            with pytest.raises(InferenceServerException, match="in flight"):
                await client.infer(MODEL, flights([1.0]), headers={"flywheel-priority": priority})
        found = await client.infer(MODEL, flights([1.0]), headers={"flywheel-priority": "HIGH"})
    assert found.as_numpy("score") is not None
    metadata = (("flywheel-priority", "high"),)
    value = value_pb2.Value
    request = inference_pb2.PredictRequest(
        model=MODEL,
        entity_keys={"carrier": value(string_value="UA")},
        request_fields={"miles": value(double_value=1.0), "origin": value(string_value="JFK")},
    )
    assert not (await gateway.stub.Predict(request, metadata=metadata, timeout=5)).degraded
    # The field of a request counts more than the header.
    request.priority = inference_pb2.PRIORITY_LOW
    assert (await refusal(gateway.stub.Predict(request, metadata=metadata, timeout=5)))[
        0
    ] == "RESOURCE_EXHAUSTED"


async def test_tritonclient_reads_health_metadata_and_index(deployment: Deployment) -> None:
    gateway = await serving(deployment)
    async with triton_client(gateway) as client:
        assert await client.is_server_live()
        assert (await client.get_server_metadata()).name == "flywheel"
        for _ in range(50):
            if await client.is_server_ready():
                break
            await asyncio.sleep(0.1)
        assert await client.is_server_ready()
        assert await client.is_model_ready(MODEL) and await client.is_model_ready(MODEL, "101")
        assert await client.is_model_ready(VERSION)
        assert not await client.is_model_ready(MODEL, "102")
        assert not await client.is_model_ready("projects/test/models/unknown")

        released = await client.get_model_metadata(MODEL)
        assert list(released.versions) == ["101"]
        assert [(i.name, i.datatype, list(i.shape)) for i in released.inputs] == [
            ("carrier", "BYTES", [-1]),
            ("miles", "FP64", [-1]),
            ("origin", "BYTES", [-1]),
        ]
        assert ("score", "FP64", [-1]) in [(o.name, o.datatype, list(o.shape)) for o in released.outputs]
        version = await client.get_model_metadata(MODEL, "101")
        assert [(i.name, i.datatype, list(i.shape)) for i in version.inputs] == [("INPUT", "FP32", [-1, 3])]
        assert [(o.name, o.datatype, list(o.shape)) for o in version.outputs] == [("SCORE", "FP32", [-1, 1])]

        index = await client.get_model_repository_index()
        assert [(m.name, m.version, m.state) for m in index.models] == [
            (MODEL, "", "READY"),
            (MODEL, "101", "READY"),
        ]


async def test_raw_tensors_reach_the_addressed_version(deployment: Deployment) -> None:
    gateway = await serving(deployment)
    rows = np.array([[1, 2, 0], [0.5, -1, 2], [np.nan, 1, -1]], np.float32)
    expected = [[expected_score(W, 0.0, row)] for row in rows.tolist()]
    async with triton_client(gateway) as client:
        for name, version in ((VERSION, ""), (MODEL, "101"), (VERSION, "101")):
            inputs = [tensor("INPUT", rows, "FP32")]
            result = await client.infer(name, inputs, model_version=version, request_id="r1")
            np.testing.assert_allclose(result.as_numpy("SCORE"), expected, atol=1e-6)
            assert result.get_response().id == "r1"
            assert result.get_response().model_name == name


async def test_a_raw_call_may_have_more_rows_than_a_batch_of_the_model(
    memory_deployment: MemoryDeployment,
) -> None:
    policy = model_pb2.ServingPolicy(placement={"max_batch_rows": 4})
    gateway = await memory_deployment.gateway_serving(
        memory_deployment.registry.release(101, W, serving_policy=policy)
    )
    rows = np.random.default_rng(1).normal(size=(11, 3)).astype(np.float32)
    async with triton_client(gateway) as client:
        result = await client.infer(VERSION, [tensor("INPUT", rows, "FP32")])
    expected = [[expected_score(W, 0.0, row)] for row in rows.tolist()]
    np.testing.assert_allclose(result.as_numpy("SCORE"), expected, atol=1e-6)


async def test_a_raw_call_has_a_place_like_a_prediction(memory_deployment: MemoryDeployment) -> None:
    gateway = await serving(memory_deployment, normal_priority_share=0.0)
    raw = [tensor("INPUT", np.ones((1, 3), np.float32), "FP32")]
    async with triton_client(gateway) as client:
        with pytest.raises(InferenceServerException, match="predictions are in flight"):
            await client.infer(VERSION, raw)
        assert await client.infer(VERSION, raw, headers={"flywheel-priority": "high"})


async def test_entity_keys_are_answered_and_logged_as_predict_does(
    deployment_with_kafka: Deployment,
) -> None:
    gateway = await serving(deployment_with_kafka)
    miles = [1.0, -2.0, 3.0]
    ids = {"v2-a", "v2-b", "v2-c"}
    inputs = [*flights(miles), texts("flywheel.prediction_id", *sorted(ids))]
    async with triton_client(gateway) as client:
        result = await client.infer(MODEL, inputs)
    expected = [expected_score(W, 0.0, (2.0, m, 0.0)) for m in miles]
    np.testing.assert_allclose(result.as_numpy("score"), expected, atol=1e-6)
    assert result.as_numpy("decision").tolist() == [e >= 0.5 for e in expected]
    assert result.as_numpy("prediction_id").tolist() == [b"v2-a", b"v2-b", b"v2-c"]
    assert set(result.as_numpy("model_version").tolist()) == {VERSION.encode()}
    assert set(result.as_numpy("role").tolist()) == {b"CHAMPION"}
    assert set(result.as_numpy("source").tolist()) == {b"MODEL"}
    assert not result.as_numpy("degraded").any()
    logged = await deployment_with_kafka.logged(topics.PREDICTION_LOGGED, ids)
    found = {id_: np.frombuffer(batch.scores, "<f8")[row] for id_, [(_, batch, row)] in logged.items()}
    assert found == pytest.approx(dict(zip(sorted(ids), expected, strict=True)), abs=1e-6)


async def test_a_stream_of_tritonclient_answers_in_order_despite_bad_requests(
    deployment: Deployment,
) -> None:
    gateway = await serving(deployment)
    results: queue.Queue[Any] = queue.Queue()

    def stream() -> None:
        with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{gateway.server.port}") as client:
            client.start_stream(callback=lambda result, error: results.put((result, error)))
            for number in range(30):
                if number % 10 == 3:
                    client.async_stream_infer(
                        VERSION, [tensor("WRONG", np.zeros((1, 3), np.float32), "FP32")]
                    )
                elif number % 2:
                    rows = np.array([[0, number, 0]], np.float32)
                    client.async_stream_infer(
                        VERSION,
                        [tensor("INPUT", rows, "FP32")],
                        request_id=str(number),
                        enable_empty_final_response=True,
                    )
                else:
                    client.async_stream_infer(MODEL, flights([float(number)]), request_id=str(number))
            client.stop_stream()

    await asyncio.to_thread(stream)
    for number in range(30):
        result, error = results.get_nowait()
        if number % 10 == 3:
            assert isinstance(error, InferenceServerException)
            assert error.message().startswith("UNKNOWN_TENSOR: ")
            continue
        assert error is None and result.get_response().id == str(number)
        delay, name = (0.0, "SCORE") if number % 2 else (2.0, "score")
        score = float(result.as_numpy(name).ravel()[0])
        assert score == pytest.approx(expected_score(W, 0.0, (delay, number, 0.0)), abs=1e-6)
        assert ("triton_final_response" in result.get_response().parameters) == bool(number % 2)
    assert results.empty()


async def test_other_methods_of_triton_are_unimplemented(memory_deployment: MemoryDeployment) -> None:
    gateway = await serving(memory_deployment)
    async with triton_client(gateway) as client:
        with pytest.raises(InferenceServerException) as caught:
            await client.load_model("late")
    assert caught.value.status() == "StatusCode.UNIMPLEMENTED"


async def test_contents_are_answered_with_contents(memory_deployment: MemoryDeployment) -> None:
    gateway = await serving(memory_deployment)
    stub = service_pb2_grpc.GRPCInferenceServiceStub(gateway.channel)
    request = service_pb2.ModelInferRequest(model_name=MODEL)
    carrier = request.inputs.add(name="carrier", datatype="BYTES", shape=[2, 1])
    carrier.contents.bytes_contents.extend([b"UA", b"DL"])
    request.inputs.add(name="miles", datatype="INT32", shape=[2]).contents.int_contents.extend([1, 4])
    origin = request.inputs.add(name="origin", datatype="BYTES", shape=[2])
    origin.contents.bytes_contents.extend(o.encode() for o in ORIGINS[:2])
    request.outputs.add(name="score")
    request.outputs.add(name="source")
    response = await stub.ModelInfer(request, timeout=5)
    assert not response.raw_output_contents
    score, source = response.outputs
    expected = [expected_score(W, 0.0, row) for row in ((2.0, 1.0, 0.0), (-1.0, 4.0, 1.0))]
    assert list(score.contents.fp64_contents) == pytest.approx(expected, abs=1e-6)
    assert list(source.contents.bytes_contents) == [b"MODEL", b"MODEL"]


def raw_request(**changes: Any) -> service_pb2.ModelInferRequest:
    """A valid request of one row for the version, with changes of its only input."""
    request = service_pb2.ModelInferRequest(model_name=changes.pop("model_name", VERSION))
    raw = changes.pop("raw", np.zeros(3, np.float32).tobytes())
    request.inputs.add(**{"name": "INPUT", "datatype": "FP32", "shape": [1, 3], **changes})
    request.raw_input_contents.append(raw)
    return request


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model_name": "late"}, ("INVALID_ARGUMENT", "INVALID_NAME")),
        ({"model_name": f"{MODEL}/versions/0"}, ("INVALID_ARGUMENT", "INVALID_NAME")),
        ({"model_name": f"{MODEL}/versions/7"}, ("NOT_FOUND", "VERSION_NOT_LOADED")),
        ({"model_name": "projects/test/models/unknown"}, ("NOT_FOUND", "UNKNOWN_MODEL")),
        ({"model_name": MODEL}, ("INVALID_ARGUMENT", "MISSING_JOIN_KEY")),
        ({"name": "OTHER"}, ("INVALID_ARGUMENT", "UNKNOWN_TENSOR")),
        ({"datatype": "FP33"}, ("INVALID_ARGUMENT", "INVALID_TENSOR")),
        ({"datatype": "FP64"}, ("INVALID_ARGUMENT", "INVALID_TENSOR")),
        ({"shape": [3_000]}, ("INVALID_ARGUMENT", "TENSOR_TOO_LARGE")),
        ({"shape": [1, 3, 1]}, ("INVALID_ARGUMENT", "INVALID_TENSOR")),
        ({"shape": [1, -3]}, ("INVALID_ARGUMENT", "INVALID_TENSOR")),
        ({"shape": []}, ("INVALID_ARGUMENT", "INVALID_TENSOR")),
        ({"shape": [1024, 2**62]}, ("INVALID_ARGUMENT", "INVALID_TENSOR")),
        ({"shape": [2**62, 3]}, ("INVALID_ARGUMENT", "TENSOR_TOO_LARGE")),
        ({"raw": b"\0" * 11}, ("INVALID_ARGUMENT", "INVALID_TENSOR")),
        (
            {"datatype": "BYTES", "raw": b"\xff\xff\xff\xff" * 3},
            ("INVALID_ARGUMENT", "INVALID_TENSOR"),
        ),
        (
            {"contents": service_pb2.InferTensorContents(fp32_contents=[1])},
            ("INVALID_ARGUMENT", "INVALID_TENSOR"),
        ),
        (
            {"parameters": {"shared_memory_region": service_pb2.InferParameter(string_param="x")}},
            ("INVALID_ARGUMENT", "UNSUPPORTED_PARAMETER"),
        ),
    ],
)
async def test_invalid_tensors_are_refused_before_the_model(
    memory_deployment: MemoryDeployment, changes: dict[str, Any], expected: tuple[str, str]
) -> None:
    gateway = await serving(memory_deployment)
    stub = service_pb2_grpc.GRPCInferenceServiceStub(gateway.channel)
    valid = await stub.ModelInfer(raw_request(), timeout=5)
    assert valid.outputs[0].shape == [1, 1]
    assert await refusal(stub.ModelInfer(raw_request(**changes), timeout=5)) == expected


async def test_a_refused_row_names_its_number(memory_deployment: MemoryDeployment) -> None:
    gateway = await serving(memory_deployment)
    stub = service_pb2_grpc.GRPCInferenceServiceStub(gateway.channel)
    request = service_pb2.ModelInferRequest(model_name=MODEL)
    for name, values in (("carrier", [b"UA", b"U\0A"]), ("origin", [b"JFK", b"JFK"])):
        request.inputs.add(name=name, datatype="BYTES", shape=[2]).contents.bytes_contents.extend(values)
    request.inputs.add(name="miles", datatype="FP64", shape=[2]).contents.fp64_contents.extend([1, 2])
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ModelInfer(request, timeout=5)
    error = from_rpc_error(caught.value)
    assert (error.reason, error.metadata["row"]) == ("INVALID_TEXT", "1")


async def test_a_fallback_answers_a_released_model_and_not_a_version(
    memory_deployment: MemoryDeployment,
) -> None:
    gateway = await serving(memory_deployment)
    memory_deployment.models.down = True
    stub = service_pb2_grpc.GRPCInferenceServiceStub(gateway.channel)
    async with triton_client(gateway) as client:
        result = await client.infer(MODEL, flights([1.0]))
    assert result.as_numpy("score").tolist() == [0.25]
    assert result.as_numpy("degraded").tolist() == [True]
    assert result.as_numpy("source").tolist() == [b"DEFAULT"]
    assert result.as_numpy("degraded_reason").tolist() == [b"MODEL_UNAVAILABLE"]
    code, reason = await refusal(stub.ModelInfer(raw_request(), timeout=5))
    assert (code, reason) in {("UNAVAILABLE", "MODEL_SERVER_DOWN"), ("NOT_FOUND", "VERSION_NOT_LOADED")}


async def test_only_server_health_is_public(memory_deployment: MemoryDeployment, tmp_path: Path) -> None:
    private = ec.generate_private_key(ec.SECP256R1())
    key = tmp_path / "key.pem"
    pem = (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    key.write_bytes(private.public_key().public_bytes(*pem))
    claims = {"sub": "ada", "iss": "https://issuer", "aud": "flywheel", "exp": time.time() + 60}
    viewer = jwt.encode({**claims, "roles": ["viewer"]}, private, algorithm="ES256")
    other_role = jwt.encode({**claims, "roles": ["other"]}, private, algorithm="ES256")
    memory_deployment.registry.want(champion=memory_deployment.registry.release(101, W))
    gateway = await memory_deployment.gateway(
        auth_mode="jwt", jwt_issuer="https://issuer", jwt_audience="flywheel", jwt_key_file=key
    )
    stub = service_pb2_grpc.GRPCInferenceServiceStub(gateway.channel)
    assert (await stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=5)).live
    await stub.ServerReady(service_pb2.ServerReadyRequest(), timeout=5)
    calls: dict[str, Any] = {
        "ServerMetadata": service_pb2.ServerMetadataRequest(),
        "ModelReady": service_pb2.ModelReadyRequest(name=MODEL),
        "ModelMetadata": service_pb2.ModelMetadataRequest(name=MODEL),
        "ModelInfer": raw_request(),
        "RepositoryIndex": service_pb2.RepositoryIndexRequest(),
    }
    for method, request in calls.items():
        call = getattr(stub, method)
        assert await refusal(call(request, timeout=5)) == ("UNAUTHENTICATED", "MISSING_TOKEN")
        metadata = [("authorization", f"Bearer {other_role}")]
        denied = await refusal(call(request, timeout=5, metadata=metadata))
        assert denied == ("PERMISSION_DENIED", "ROLE_REQUIRED")
    headers = {"authorization": f"Bearer {viewer}"}
    async with triton_client(gateway) as client:
        async with asyncio.timeout(20):
            while not await client.is_model_ready(MODEL, headers=headers):
                await asyncio.sleep(0.05)
        result = await client.infer(MODEL, flights([1.0]), headers=headers)
    assert result.as_numpy("source").tolist() == [b"MODEL"]
