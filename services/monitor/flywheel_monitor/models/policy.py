"""The policy by which a model is watched: its defaults and its checks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from flywheel_monitor.models.errors import InvalidPolicy
from flywheel_monitor.models.feature_rule import FeatureRule, rule_problems

HOUR_US = 3_600_000_000
WEEK_US = 7 * 24 * HOUR_US
MAX_SEASONAL_WEEKS = 53


@dataclass(frozen=True)
class MonitorPolicy:
    """Thresholds and durations; see `MonitorPolicy` of the API. Durations are microseconds of event time."""

    window_us: int = 24 * HOUR_US
    lateness_us: int = 24 * HOUR_US
    min_predictions: int = 500
    min_labels: int = 500
    psi_warning: float = 0.1
    psi_alert: float = 0.2
    fdr: float = 0.01
    k_of: int = 2
    m_windows: int = 3
    score_shift: float = 2.0
    auc_drop: float = 0.05
    log_loss_ratio: float = 1.2
    data_quality_rate: float = 0.2
    label_shift: float = 0.05
    feature_rules: tuple[FeatureRule, ...] = ()
    seasonal_weeks: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> MonitorPolicy:
        known = {f.name for f in fields(cls)}
        found = {key: value for key, value in stored.items() if key in known}
        rules = tuple(FeatureRule.from_json(rule) for rule in stored.get("feature_rules", ()))
        return cls(**{**found, "feature_rules": rules})

    def rules(self) -> dict[str, FeatureRule]:
        """feature → its rule, with the thresholds that hold for it."""
        return {
            rule.feature: replace(
                rule,
                psi_warning=rule.psi_warning or self.psi_warning,
                psi_alert=rule.psi_alert or self.psi_alert,
            )
            for rule in self.feature_rules
        }

    def default_rule(self, feature: str) -> FeatureRule:
        """The rule of a feature without one of its own."""
        return FeatureRule(feature, self.psi_warning, self.psi_alert)

    def checked(self, pane_us: int) -> MonitorPolicy:
        """The policy itself. Raises InvalidPolicy, which lists every problem."""
        # JSON has no infinity.
        problems = [f"{name} must be finite" for name, value in vars(self).items() if value == math.inf]
        if self.window_us < pane_us or self.window_us % pane_us:
            problems.append(f"window must be a positive multiple of the pane of {pane_us / 1e6:g} s")
        if self.lateness_us < 0:
            problems.append("lateness must not be negative")
        if not 0 < self.psi_warning <= self.psi_alert:
            problems.append("0 < psi_warning <= psi_alert must hold")
        if not 0 < self.fdr < 1:
            problems.append("fdr must lie between 0 and 1")
        if not 1 <= self.k_of <= self.m_windows <= 100:
            problems.append("1 <= k_of <= m_windows <= 100 must hold")
        positive = ("score_shift", "auc_drop", "label_shift")
        problems.extend(f"{name} must be positive" for name in positive if not getattr(self, name) > 0)
        if not self.log_loss_ratio > 1:
            problems.append("log_loss_ratio must be above 1")
        if not 0 < self.data_quality_rate <= 1:
            problems.append("data_quality_rate must lie between 0 and 1")
        if not 0 <= self.seasonal_weeks <= MAX_SEASONAL_WEEKS:
            problems.append(f"seasonal_weeks must lie between 0 and {MAX_SEASONAL_WEEKS}")
        if self.window_us > self.seasonal_weeks * WEEK_US > 0:
            problems.append("window must not be longer than seasonal_weeks")
        problems.extend(rule_problems(self.feature_rules, self.psi_warning, self.psi_alert))
        if problems:
            raise InvalidPolicy(f"The policy is not valid: {'; '.join(problems)}.")
        return self
