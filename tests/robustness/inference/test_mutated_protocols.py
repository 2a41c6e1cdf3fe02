"""10,000 damaged requests of the Open Inference Protocol and 10,000 of the gateway's own.

They get documented codes, cause no large allocation, and the gateway answers afterwards."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from tritonclient.grpc import service_pb2

from flywheel_protos.inference.v1 import inference_pb2 as pb
from flywheel_protos.types.v1.value_pb2 import Value
from tests.support.builders.inference import MODEL
from tests.support.mutated_requests import Outcome, damaged, outcome_of, random_requests, undocumented
from tests.support.servers.inference import Gateway, MemoryDeployment

CALLS = 10_000
IN_FLIGHT = 16
LIMIT_BYTES = 128 * 1024 * 1024
"""Largest growth of the process, which keeps all outcomes; a declared shape may ask for exabytes."""
VERSION = f"{MODEL}/versions/101"
NATIVE = pb.DESCRIPTOR.services_by_name["InferenceService"]
OPEN_INFERENCE = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    async with AsyncExitStack() as stack:
        deployment = MemoryDeployment(stack)
        await deployment.start()
        yield await deployment.gateway_serving(deployment.registry.release(101, (0.5, -0.25, 1.0)))


def memory(kind: str) -> int:
    """VmRSS, the memory of this process now, or VmHWM, its peak; bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{kind}:"))


def restart_peak() -> None:
    """Sets VmHWM to the memory of now."""
    Path("/proc/self/clear_refs").write_text("5")


def predict_request() -> pb.PredictRequest:
    return pb.PredictRequest(
        model=MODEL,
        entity_keys={"carrier": Value(string_value="UA")},
        request_fields={"miles": Value(double_value=1.0), "origin": Value(string_value="JFK")},
        subject="s",
        prediction_id="p",
    )


def native_requests() -> dict[str, Message]:
    one = predict_request()
    return {
        "Predict": one,
        "BatchPredict": pb.BatchPredictRequest(model=MODEL, requests=[one, one, one]),
        "StreamPredict": pb.StreamPredictRequest(id="1", request=one),
        "RecordOutcome": pb.RecordOutcomeRequest(
            model=MODEL, outcomes=[pb.Outcome(prediction_id="p", name="label", value=1.0)]
        ),
        "GetServingStatus": pb.GetServingStatusRequest(),
    }


def raw_tensors() -> service_pb2.ModelInferRequest:
    request = service_pb2.ModelInferRequest(model_name=VERSION, id="1")
    request.inputs.add(name="INPUT", datatype="FP32", shape=[2, 3])
    request.outputs.add(name="SCORE")
    request.raw_input_contents.append(np.zeros((2, 3), np.float32).tobytes())
    return request


def entity_tensors(chance: random.Random) -> service_pb2.ModelInferRequest:
    """Rows in which shapes and datatypes are wrong now and then."""
    request = service_pb2.ModelInferRequest(model_name=MODEL)
    shape = [2] if chance.random() < 0.7 else [chance.choice([0, 1, 2, -1, 2**62]) for _ in range(3)]
    carrier = request.inputs.add(name="carrier", datatype="BYTES", shape=shape)
    carrier.contents.bytes_contents.extend([b"UA", b"DL"])
    kind = chance.choice(["FP64", "INT64", "UINT64", "FP16", "TEXT"])
    miles = request.inputs.add(name="miles", datatype=kind, shape=[2, 1])
    miles.contents.fp64_contents.extend([1, 2])
    request.inputs.add(name="origin", datatype="BYTES", shape=[2]).contents.bytes_contents.extend(
        [b"\xff", b""]
    )
    return request


def open_inference_requests(chance: random.Random) -> dict[str, Message]:
    tensors = raw_tensors() if chance.random() < 0.5 else entity_tensors(chance)
    return {
        "ServerLive": service_pb2.ServerLiveRequest(),
        "ServerReady": service_pb2.ServerReadyRequest(),
        "ServerMetadata": service_pb2.ServerMetadataRequest(),
        "ModelReady": service_pb2.ModelReadyRequest(name=MODEL, version="101"),
        "ModelMetadata": service_pb2.ModelMetadataRequest(name=VERSION),
        "ModelInfer": tensors,
        "ModelStreamInfer": tensors,
        "RepositoryIndex": service_pb2.RepositoryIndexRequest(ready=True),
    }


def damaged_calls(
    service: ServiceDescriptor, valid: Callable[[random.Random], dict[str, Message]], weights: Sequence[str]
) -> Iterator[tuple[MethodDescriptor, bytes]]:
    """Methods with damaged or random requests; the methods in `weights` come more often."""
    chance = random.Random(7)
    methods = {method.name: method for method in service.methods}
    for number in range(CALLS):
        requests = valid(chance)
        name = chance.choice([*requests, *weights])
        if chance.random() < 0.2:
            yield methods[name], next(random_requests(methods[name], 1, number))
        else:
            yield methods[name], damaged(requests[name].SerializeToString(), chance)


async def outcomes(
    gateway: Gateway, service: ServiceDescriptor, calls: Iterator[tuple[MethodDescriptor, bytes]]
) -> list[Outcome]:
    answers: list[Outcome] = []

    async def work() -> None:
        for method, request in calls:
            answers.append(await outcome_of(gateway.channel, service, method, request))

    async with asyncio.TaskGroup() as group:
        for _ in range(IN_FLIGHT):
            group.create_task(work())
    return answers


@pytest.mark.parametrize("protocol", ["native", "open inference"])
async def test_damaged_requests_get_documented_codes_within_bounded_memory(
    gateway: Gateway, protocol: str
) -> None:
    service: Any = NATIVE if protocol == "native" else OPEN_INFERENCE
    if protocol == "native":
        calls = damaged_calls(NATIVE, lambda _: native_requests(), ["Predict"] * 8 + ["BatchPredict"] * 4)
    else:
        calls = damaged_calls(OPEN_INFERENCE, open_inference_requests, ["ModelInfer"] * 20)
    before = memory("VmRSS")
    restart_peak()
    answers = await outcomes(gateway, service, calls)
    grown = memory("VmHWM") - before
    assert len(answers) == CALLS
    wrong = undocumented(answers)
    assert not wrong, "\n".join(wrong[:20])
    codes = Counter(answer.code for answer in answers)
    assert codes["OK"] > 100 and codes["INVALID_ARGUMENT"] > 1_000, codes
    assert grown < LIMIT_BYTES
    assert not (await gateway.predict()).degraded
