"""Callers that name the variant which answers."""

from __future__ import annotations

from typing import Any

import grpc
import numpy as np
import pytest

from flywheel_common.context import Call, Principal, current_call
from flywheel_common.errors import PermissionDenied
from flywheel_common.grpc.error_details import from_rpc_error
from flywheel_common.kafka import topics
from flywheel_inference.api.call_headers import VARIANT_HEADER, forced_variant
from flywheel_protos.events.v1 import prediction_pb2
from flywheel_protos.inference.v1 import inference_pb2
from flywheel_protos.types.v1 import value_pb2
from tests.support.builders.inference import MODEL
from tests.support.servers.inference import Gateway, MemoryDeployment
from tests.support.triton_client import tensor, texts, triton_client

W = (0.5, -0.25, 1.0)


def request(prediction_id: str) -> inference_pb2.PredictRequest:
    value = value_pb2.Value
    return inference_pb2.PredictRequest(
        model=MODEL,
        entity_keys={"carrier": value(string_value="UA")},
        request_fields={"miles": value(double_value=1.0), "origin": value(string_value="JFK")},
        prediction_id=prediction_id,
    )


async def serving(deployment: MemoryDeployment, **routing: Any) -> Gateway:
    """A gateway with a champion (release 1) and a challenger (release 2)."""
    registry = deployment.registry
    gateway = await deployment.gateway()
    champion, challenger = registry.release(1, W), registry.release(2, W, 1.0)
    await gateway.serves(registry.want(champion=champion, challenger=challenger, rollout="r", **routing))
    return gateway


async def test_the_named_variant_answers_outside_every_rollout(memory_deployment: MemoryDeployment) -> None:
    holdback = memory_deployment.registry.release(3, W, 2.0)
    gateway = await serving(
        memory_deployment, challenger_percent=0.0001, variants={"holdback": (holdback, 0.0, 0.0)}
    )
    expected = {"champion": 1, "challenger": 2, "holdback": 3}
    for variant, release in expected.items():
        answer = await gateway.stub.Predict(request(variant), metadata=[(VARIANT_HEADER, variant)], timeout=5)
        assert answer.release == f"{MODEL}/releases/{release}"
    logged = await memory_deployment.logged(topics.PREDICTION_LOGGED, set(expected))
    for variant, release in expected.items():
        ((_, batch, _),) = logged[variant]
        assert (batch.release, batch.rollout) == (f"{MODEL}/releases/{release}", "")
        is_champion = batch.role == prediction_pb2.PREDICTION_ROLE_CHAMPION
        assert is_champion == (variant == "champion")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await gateway.stub.Predict(request("x"), metadata=[(VARIANT_HEADER, "other")], timeout=5)
    error = from_rpc_error(caught.value)
    assert (caught.value.code(), error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "UNKNOWN_VARIANT")


async def test_the_named_variant_answers_calls_of_every_method(memory_deployment: MemoryDeployment) -> None:
    gateway = await serving(memory_deployment, shadow_percent=100)
    headers, expected = {VARIANT_HEADER: "challenger"}, f"{MODEL}/releases/2"
    metadata = list(headers.items())
    batch = inference_pb2.BatchPredictRequest(requests=[request("batch")])
    batched = await gateway.stub.BatchPredict(batch, metadata=metadata, timeout=5)
    assert [expected] == [result.response.release for result in batched.results]
    stream = gateway.stub.StreamPredict(
        iter([inference_pb2.StreamPredictRequest(id="s", request=request("stream"))]), metadata=metadata
    )
    assert [expected] == [answer.result.response.release async for answer in stream]
    async with triton_client(gateway) as client:
        inputs = [texts("carrier", "UA"), tensor("miles", np.array([1.0]), "FP64"), texts("origin", "JFK")]
        found = await client.infer(MODEL, inputs, headers=headers)
    assert [b"projects/test/models/late/versions/2"] == found.as_numpy("model_version").tolist()


@pytest.mark.parametrize(("roles", "allowed"), [({"editor"}, False), ({"editor", "promoter"}, True)])
def test_only_callers_that_may_promote_name_a_variant(roles: set[str], allowed: bool) -> None:
    token = current_call.set(Call(principal=Principal("ann", frozenset(roles))))
    try:
        assert forced_variant([("user-agent", "x")]) == ""
        if allowed:
            assert forced_variant([(VARIANT_HEADER, "challenger")]) == "challenger"
        else:
            with pytest.raises(PermissionDenied):
                forced_variant([(VARIANT_HEADER, "challenger")])
    finally:
        current_call.reset(token)
