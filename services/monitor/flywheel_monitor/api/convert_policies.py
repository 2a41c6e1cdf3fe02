"""Monitor policies from and to protobuf."""

from __future__ import annotations

from flywheel_monitor.api.convert_feature_rules import rule_from_proto, rule_to_proto
from flywheel_monitor.api.timestamps import duration
from flywheel_monitor.models.policy import MonitorPolicy
from flywheel_protos.monitor.v1 import monitor_pb2


def policy_from_proto(policy: monitor_pb2.MonitorPolicy) -> MonitorPolicy:
    """The policy with defaults for unset and zero fields; not checked yet (`MonitorPolicy.checked`)."""
    d = MonitorPolicy()
    return MonitorPolicy(
        window_us=policy.window.ToMicroseconds() if policy.HasField("window") else d.window_us,
        lateness_us=policy.lateness.ToMicroseconds() if policy.HasField("lateness") else d.lateness_us,
        min_predictions=policy.min_predictions or d.min_predictions,
        min_labels=policy.min_labels or d.min_labels,
        psi_warning=policy.psi_warning or d.psi_warning,
        psi_alert=policy.psi_alert or d.psi_alert,
        fdr=policy.fdr or d.fdr,
        k_of=policy.k_of or (min(d.k_of, policy.m_windows) if policy.m_windows else d.k_of),
        m_windows=policy.m_windows or max(d.m_windows, policy.k_of),
        score_shift=policy.score_shift or d.score_shift,
        auc_drop=policy.auc_drop or d.auc_drop,
        log_loss_ratio=policy.log_loss_ratio or d.log_loss_ratio,
        data_quality_rate=policy.data_quality_rate or d.data_quality_rate,
        label_shift=policy.label_shift or d.label_shift,
        feature_rules=tuple(rule_from_proto(rule) for rule in policy.feature_rules),
        seasonal_weeks=policy.seasonal_weeks,
    )


def policy_to_proto(model: str, policy: MonitorPolicy) -> monitor_pb2.MonitorPolicy:
    return monitor_pb2.MonitorPolicy(
        model=model,
        window=duration(policy.window_us),
        lateness=duration(policy.lateness_us),
        min_predictions=policy.min_predictions,
        min_labels=policy.min_labels,
        psi_warning=policy.psi_warning,
        psi_alert=policy.psi_alert,
        fdr=policy.fdr,
        k_of=policy.k_of,
        m_windows=policy.m_windows,
        score_shift=policy.score_shift,
        auc_drop=policy.auc_drop,
        log_loss_ratio=policy.log_loss_ratio,
        data_quality_rate=policy.data_quality_rate,
        label_shift=policy.label_shift,
        feature_rules=[rule_to_proto(rule) for rule in policy.feature_rules],
        seasonal_weeks=policy.seasonal_weeks,
    )
