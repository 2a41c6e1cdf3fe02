"""Values that stores do not support are found at any depth of a message."""

from __future__ import annotations

import pytest
from google.protobuf.message import Message

from flywheel_common.grpc.message_limits import unsupported_value
from flywheel_protos.inference.v1 import inference_pb2
from flywheel_protos.registry.v1 import model_pb2, registry_pb2
from flywheel_protos.types.v1 import value_pb2


def predict(seconds: int, nanos: int = 0) -> inference_pb2.PredictRequest:
    request = inference_pb2.PredictRequest(model="m")
    request.as_of.seconds, request.as_of.nanos = seconds, nanos
    return request


def rollout(seconds: int, nanos: int = 0) -> registry_pb2.StartRolloutRequest:
    request = registry_pb2.StartRolloutRequest(parent="p")
    request.policy.min_bake.seconds, request.policy.min_bake.nanos = seconds, nanos
    return request


@pytest.mark.parametrize(
    ("message", "reason", "field"),
    [
        (inference_pb2.PredictRequest(model="a\0b"), "INVALID_TEXT", "model"),
        (
            inference_pb2.PredictRequest(entity_keys={"x": value_pb2.Value(string_value="\0")}),
            "INVALID_TEXT",
            "entity_keys.string_value",
        ),
        (inference_pb2.PredictRequest(entity_keys={"\0": value_pb2.Value()}), "INVALID_TEXT", "entity_keys"),
        (
            registry_pb2.CreateModelRequest(model=model_pb2.Model(tags={"a": "\0"})),
            "INVALID_TEXT",
            "model.tags",
        ),
        (predict(253_402_300_800), "INVALID_TIMESTAMP", "as_of"),
        (predict(-62_135_596_801), "INVALID_TIMESTAMP", "as_of"),
        (predict(0, -1), "INVALID_TIMESTAMP", "as_of"),
        (predict(0, 1_000_000_000), "INVALID_TIMESTAMP", "as_of"),
        (rollout(2**63 - 1), "INVALID_DURATION", "policy.min_bake"),
        (rollout(1, -1), "INVALID_DURATION", "policy.min_bake"),
    ],
)
def test_the_first_unsupported_value_is_named(message: Message, reason: str, field: str) -> None:
    found = unsupported_value(message)
    assert found is not None
    assert (reason, field) == (found.reason, found.metadata["field"])


def test_values_in_range_are_accepted() -> None:
    for message in (
        predict(253_402_300_799, 999_999_999),
        predict(-62_135_596_800),
        rollout(-1, -1),
        rollout(315_576_000_000),
        inference_pb2.PredictRequest(model="ü\u2028", prediction_id=""),
    ):
        assert unsupported_value(message) is None
