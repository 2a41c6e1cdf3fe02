"""Serving policies: limits, and conversion to protobuf and back."""

from __future__ import annotations

import math

import pytest

from flywheel_protos.registry.v1 import model_pb2 as pb
from flywheel_registry.api.convert_serving_policy import serving_policy, serving_policy_to_proto
from flywheel_registry.releases.errors import InvalidServingPolicy
from flywheel_registry.releases.serving_policy import (
    Placement,
    RealTimeRule,
    ServingCost,
    ServingPolicy,
    check_serving_policy,
)

FULL = ServingPolicy(
    Placement(2, 3, 64, 0.25),
    (
        RealTimeRule("amount", 100.0),
        RealTimeRule("country", values=("DE", "FR")),
        RealTimeRule("n", -1.0, 0.0),
    ),
    ServingCost("EUR", 0.001, 2.5),
)


@pytest.mark.parametrize(
    "policy", [FULL, ServingPolicy(), ServingPolicy(real_time=()), ServingPolicy(Placement())]
)
def test_a_policy_is_the_same_after_both_conversions(policy: ServingPolicy) -> None:
    check_serving_policy(policy, has_cached=True)
    assert serving_policy(pb.Release(serving_policy=serving_policy_to_proto(policy))) == policy


def test_a_release_without_a_policy_has_none() -> None:
    assert serving_policy(pb.Release()) is None


@pytest.mark.parametrize(
    "policy",
    [
        ServingPolicy(Placement(kind=3)),
        ServingPolicy(Placement(instances=65)),
        ServingPolicy(Placement(max_batch_rows=1025)),
        ServingPolicy(Placement(max_queue_delay_seconds=1.5)),
        ServingPolicy(Placement(max_queue_delay_seconds=-0.1)),
        ServingPolicy(real_time=(RealTimeRule("amount"),)),
        ServingPolicy(real_time=(RealTimeRule("", 1.0),)),
        ServingPolicy(real_time=(RealTimeRule("amount", 2.0, 1.0),)),
        ServingPolicy(real_time=(RealTimeRule("amount", math.nan),)),
        ServingPolicy(real_time=(RealTimeRule("amount", maximum=math.inf),)),
        ServingPolicy(real_time=(RealTimeRule("amount", 1.0),) * 17),
        ServingPolicy(real_time=(RealTimeRule("c", values=tuple(map(str, range(1001)))),)),
        ServingPolicy(cost=ServingCost("x" * 17)),
        ServingPolicy(cost=ServingCost("EUR", -0.1)),
        ServingPolicy(cost=ServingCost("EUR", per_model_second=math.inf)),
    ],
)
def test_a_policy_out_of_its_limits_is_refused(policy: ServingPolicy) -> None:
    with pytest.raises(InvalidServingPolicy):
        check_serving_policy(policy, has_cached=True)


def test_a_cost_mode_needs_cached_predictions() -> None:
    with pytest.raises(InvalidServingPolicy, match="cached_max_age"):
        check_serving_policy(ServingPolicy(real_time=()), has_cached=False)
