"""The offline gate and the validation of policies."""

from __future__ import annotations

import math

import pytest

from flywheel_registry.gates.offline import evaluate_offline
from flywheel_registry.policies.errors import InvalidPolicy
from flywheel_registry.policies.gate_policy import GatePolicy, MetricThreshold
from flywheel_registry.policies.rollout_policy import RolloutPolicy

AUC = MetricThreshold("auc", min=0.7, min_delta=-0.01)
LOSS = MetricThreshold("log_loss", max=0.5, max_delta=0.0)


@pytest.mark.parametrize(
    ("metrics", "champion", "passed"),
    [
        ({"auc": 0.7, "log_loss": 0.5}, None, True),
        ({"auc": 0.6999, "log_loss": 0.5}, None, False),
        ({"auc": 0.8, "log_loss": 0.5001}, None, False),
        ({"auc": 0.8}, None, False),
        ({"auc": math.nan, "log_loss": 0.4}, None, False),
        ({"auc": 0.8, "log_loss": 0.4}, {"auc": 0.8, "log_loss": 0.4}, True),
        ({"auc": 0.8, "log_loss": 0.4}, {"auc": 0.82, "log_loss": 0.4}, False),
        ({"auc": 0.8, "log_loss": 0.4}, {"auc": 0.8, "log_loss": 0.39}, False),
        # Without the champion's metric there is no difference to check.
        ({"auc": 0.8, "log_loss": 0.4}, {"auc": 0.8}, False),
    ],
)
def test_bounds_are_inclusive_and_missing_metrics_fail(
    metrics: dict[str, float], champion: dict[str, float] | None, passed: bool
) -> None:
    result = evaluate_offline(GatePolicy((AUC, LOSS)), metrics, champion)
    assert result.passed is passed
    assert len(result.findings) == 4
    assert any(line.startswith("FAILED") for line in result.findings) is not passed


def test_findings_contain_the_numbers() -> None:
    result = evaluate_offline(GatePolicy((AUC,), 100), {"auc": 0.72, "rows": 50}, {"auc": 0.75})
    assert result.findings == (
        "FAILED: evaluation rows: 50, at least 100 needed",
        "passed: auc: 0.72, must be at least 0.7",
        "FAILED: auc against the champion: 0.72 - 0.75 = -0.03, must be at least -0.01",
    )
    assert result.values["delta.auc"] == pytest.approx(-0.03)


def test_a_slice_is_a_metric_of_its_own() -> None:
    policy = GatePolicy((MetricThreshold("auc{origin=JFK}", min=0.6),))
    assert evaluate_offline(policy, {"auc{origin=JFK}": 0.61}, None).passed
    assert not evaluate_offline(policy, {"auc": 0.9}, None).passed


@pytest.mark.parametrize(
    "policy",
    [
        GatePolicy((MetricThreshold("", min=1),)),
        GatePolicy((MetricThreshold("auc"),)),
        GatePolicy((MetricThreshold("auc", min=math.inf),)),
        RolloutPolicy(canary_percents=(5, 20)),
        RolloutPolicy(canary_percents=(20, 5, 100)),
        RolloutPolicy(canary_percents=(0, 100)),
        RolloutPolicy(shadow_percent=101),
        RolloutPolicy(alpha=0.5),
        RolloutPolicy(max_error_rate=-1),
        RolloutPolicy(shadow_max_log_loss_delta=math.nan),
        RolloutPolicy(min_bake_seconds=10, max_step_seconds=5),
        RolloutPolicy(min_bake_seconds=1e12),
    ],
)
def test_invalid_policies_are_rejected(policy: GatePolicy | RolloutPolicy) -> None:
    with pytest.raises(InvalidPolicy):
        policy.check()


def test_champion_metrics_on_the_same_rows_take_precedence() -> None:
    policy = GatePolicy((MetricThreshold("auc", min_delta=-0.01),))
    own_evaluation = {"auc": 0.9}
    assert evaluate_offline(policy, {"auc": 0.7, "champion_auc": 0.65}, own_evaluation).passed
    assert not evaluate_offline(policy, {"auc": 0.7, "champion_auc": 0.75}, {"auc": 0.5}).passed
    assert not evaluate_offline(policy, {"auc": 0.7, "champion_auc": math.nan}, {"auc": 0.5}).passed
