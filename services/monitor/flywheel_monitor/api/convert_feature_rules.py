"""Feature rules of a policy from and to protobuf."""

from __future__ import annotations

from flywheel_monitor.api.timestamps import micros_of, timestamp
from flywheel_monitor.models.feature_rule import Direction, FeatureRule
from flywheel_protos.monitor.v1 import feature_rule_pb2


def rule_from_proto(rule: feature_rule_pb2.FeatureRule) -> FeatureRule:
    """The rule, not checked yet. Raises InvalidTime and EventTimeOutOfRange."""
    return FeatureRule(
        feature=rule.feature,
        psi_warning=rule.psi_warning,
        psi_alert=rule.psi_alert,
        direction=int(rule.direction) or Direction.BOTH,
        silenced=rule.silenced,
        silenced_until_us=micros_of(rule, "silenced_until"),
    )


def rule_to_proto(rule: FeatureRule) -> feature_rule_pb2.FeatureRule:
    found = feature_rule_pb2.FeatureRule(
        feature=rule.feature,
        psi_warning=rule.psi_warning,
        psi_alert=rule.psi_alert,
        direction=rule.direction,  # type: ignore[arg-type]
        silenced_until=timestamp(rule.silenced_until_us),
    )
    if rule.silenced:
        found.silenced = True
    return found
