"""Monitor policies: defaults, checks and conversion."""

from __future__ import annotations

import pytest

from flywheel_monitor.api import convert_policies
from flywheel_monitor.models.errors import InvalidPolicy
from flywheel_monitor.models.policy import MonitorPolicy
from flywheel_protos.monitor.v1 import monitor_pb2


def test_an_empty_policy_has_the_documented_defaults() -> None:
    policy = convert_policies.policy_from_proto(
        monitor_pb2.MonitorPolicy(model="projects/p/models/late")
    ).checked(60_000_000)
    back = convert_policies.policy_to_proto("projects/p/models/late", policy)
    assert back.window.ToSeconds() == 24 * 3600
    assert back.lateness.ToSeconds() == 24 * 3600
    assert (back.min_predictions, back.min_labels) == (500, 500)
    assert (back.psi_warning, back.psi_alert, back.fdr) == (0.1, 0.2, 0.01)
    assert (back.k_of, back.m_windows) == (2, 3)
    assert (back.score_shift, back.auc_drop, back.log_loss_ratio) == (2.0, 0.05, 1.2)
    assert (back.data_quality_rate, back.label_shift) == (0.2, 0.05)
    assert convert_policies.policy_from_proto(back) == policy


@pytest.mark.parametrize(
    "fields",
    [
        {"window_us": 61_000_000},
        {"window_us": 0},
        {"psi_warning": 0.3},
        {"fdr": 1.5},
        {"k_of": 4},
        {"log_loss_ratio": 0.9},
        {"lateness_us": -1},
        {"auc_drop": float("nan")},
        {"auc_drop": float("inf")},
        {"score_shift": float("inf")},
        {"psi_alert": float("inf")},
        {"log_loss_ratio": float("inf")},
    ],
)
def test_an_invalid_policy_is_rejected(fields: dict[str, float]) -> None:
    with pytest.raises(InvalidPolicy) as caught:
        MonitorPolicy(**fields).checked(60_000_000)  # type: ignore[arg-type]
    assert caught.value.reason == "INVALID_POLICY"
    assert "is not valid" in caught.value.message
