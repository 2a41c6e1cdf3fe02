"""Rules of a cost mode, and costs of answers."""

from __future__ import annotations

from typing import Any

import pytest

from flywheel_inference.encoding.serving_policy_messages import serving_policy
from flywheel_inference.releases.serving_policy import CostMode, Placement, RealTimeRule, ServingCost
from flywheel_protos.registry.v1 import model_pb2 as pb

AMOUNT = RealTimeRule("amount", 100.0, 200.0)
COUNTRY = RealTimeRule("country", values=frozenset({"DE", "7", "true"}))


@pytest.mark.parametrize(
    ("rule", "value", "expected"),
    [
        (AMOUNT, 100.0, True),
        (AMOUNT, 200, True),
        (AMOUNT, 99.99, False),
        (AMOUNT, 200.01, False),
        (AMOUNT, None, False),
        (AMOUNT, float("nan"), False),
        (AMOUNT, "150", False),
        (AMOUNT, True, False),
        (RealTimeRule("amount", minimum=5.0), 1e9, True),
        (RealTimeRule("amount", maximum=5.0), -1e9, True),
        (RealTimeRule("amount", maximum=5.0), 5.1, False),
        (COUNTRY, "DE", True),
        (COUNTRY, "FR", False),
        (COUNTRY, 7, True),
        (COUNTRY, True, True),
        (COUNTRY, False, False),
        (COUNTRY, None, False),
    ],
)
def test_a_rule_holds_for_its_values_and_its_range(rule: RealTimeRule, value: Any, expected: bool) -> None:
    assert rule.holds(value) == expected


def test_one_rule_is_enough() -> None:
    mode = CostMode((AMOUNT, COUNTRY))
    assert mode.worth_the_model({"amount": 150.0, "country": "FR"})
    assert mode.worth_the_model({"amount": 1.0, "country": "DE"})
    assert not mode.worth_the_model({"amount": 1.0, "country": "FR"})
    assert not mode.worth_the_model({})
    assert not CostMode().worth_the_model({"amount": 150.0})


def test_a_batch_shares_the_time_of_its_call() -> None:
    cost = ServingCost(per_answer=0.5, per_model_second=8.0)
    assert cost.of_answer() == 0.5
    assert cost.of_answer(model_ms=250.0, rows=4) == 0.5 + 8.0 * 0.25 / 4


def test_a_policy_is_decoded_with_the_defaults_of_unset_fields() -> None:
    found = serving_policy(pb.ServingPolicy())
    assert (found.placement, found.cost_mode, found.cost) == (Placement(), None, None)
    message = pb.ServingPolicy(
        placement=pb.ModelPlacement(
            kind=pb.INSTANCE_KIND_GPU, instance_count=2, max_batch_rows=32, max_queue_delay={"nanos": 500_000}
        ),
        cost_mode=pb.CostMode(real_time=[pb.RealTimeRule(field="amount", min=100.0, max=200.0)]),
        cost=pb.ServingCost(per_answer=0.5, per_model_second=8.0),
    )
    found = serving_policy(message)
    assert found.placement == Placement(True, 2, 32, 500)
    assert found.cost_mode == CostMode((AMOUNT,))
    assert found.cost == ServingCost(0.5, 8.0)


def test_a_kind_of_instance_of_a_newer_registry_is_not_served() -> None:
    with pytest.raises(ValueError, match="kind of instance"):
        serving_policy(pb.ServingPolicy(placement={"kind": 9}))
