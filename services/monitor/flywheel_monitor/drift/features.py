"""Verdicts on the features of a window: drift, bad data, or neither.

A feature drifts when three conditions hold: enough rows, a significant difference (Benjamini-Hochberg over
the features of the window), and an effect of practical size. In large windows almost every feature differs
significantly, and in small windows PSI is large by chance, so each condition alone gives false alarms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from flywheel_common.arrays import Ints
from flywheel_monitor.drift import fdr
from flywheel_monitor.drift.statistics import FeatureDrift
from flywheel_monitor.drift.vectors import Columns, cause_of_feature, measure_features
from flywheel_monitor.drift.verdict import Verdict
from flywheel_monitor.models.feature_rule import Direction, FeatureRule
from flywheel_monitor.models.policy import MonitorPolicy
from flywheel_monitor.windows.bins import FeatureBins
from flywheel_monitor.windows.vectors import by_feature

MEAN_SHIFT_WARNING = 0.1
"""Mean shift in reference standard deviations that counts as a warning whatever the PSI: a shift of 0.3
sigma has a PSI of only 0.09."""
RATE_WARNING = 0.05
"""Rise of the share of missing, or of unseen and out-of-range, values that counts as a warning."""


def judge_features(
    features: Sequence[FeatureBins],
    counts: Mapping[str, Ints],
    mean_shifts: Mapping[str, float],
    policy: MonitorPolicy,
    blocks: Mapping[str, Ints] | None = None,
    moments: Mapping[str, tuple[float, float]] | None = None,
    *,
    start_us: int = 0,
) -> list[FeatureDrift]:
    """The verdict on every feature, most drifted first. Per column, `counts` [size]; for the design effect,
    `blocks` [B, size]; for the causes of bad data, `moments` (`WindowCounts.moments`). A vector is one
    feature with a column for each projection. `start_us`: the event time at which the window begins, which
    decides what is silenced."""
    window = Columns(counts, blocks or {}, mean_shifts, moments or {})
    rules = policy.rules()
    statistics = measure_features(features, window)
    measured = []
    for name, columns in by_feature(features).items():
        found, p = statistics[name]
        rule = rules.get(name) or policy.default_rule(name)
        measured.append((columns, found, p, rule))
    silenced = [rule.silent(start_us) for *_, rule in measured]
    adjusted = adjusted_p_values([p for _, _, p, _ in measured], silenced)
    judged = []
    for (columns, found, _, rule), silent, q in zip(measured, silenced, adjusted, strict=True):
        verdict, reason, cause = _judge(columns, window, found, q, policy, rule)
        judged.append(
            replace(found, silenced=silent, adjusted_p_value=q, verdict=verdict, reason=reason, cause=cause)
        )
    return sorted(judged, key=lambda d: (-d.psi_corrected, d.feature))


def adjusted_p_values(p_values: Sequence[float], silenced: Sequence[bool]) -> list[float]:
    """The p-values of features after Benjamini-Hochberg. Silenced features are adjusted by themselves: one
    that drifts for ever would make smaller differences of the others significant."""
    raw, silent = np.array(p_values, np.float64), np.array(silenced, np.bool_)
    for group in (silent, ~silent):
        raw[group] = fdr.adjust(raw[group])
    found: list[float] = raw.tolist()
    return found


def _judge(
    columns: Sequence[FeatureBins],
    window: Columns,
    d: FeatureDrift,
    adjusted_p_value: float,
    policy: MonitorPolicy,
    rule: FeatureRule,
) -> tuple[Verdict, str, str]:
    """(verdict, reason, cause of bad data if it is bad)."""
    rows = int(window.counts[columns[0].name].sum())
    if rows < policy.min_predictions:
        return Verdict.INSUFFICIENT, f"{rows} rows, {policy.min_predictions} needed", ""
    bad = cause_of_feature(columns, window, policy.data_quality_rate)
    if bad is not None:
        return Verdict.DATA_QUALITY, bad[1], bad[0].value
    return *judge_effect(d, adjusted_p_value, policy, rule), ""


def judge_effect(
    d: FeatureDrift, adjusted_p_value: float, policy: MonitorPolicy, rule: FeatureRule
) -> tuple[Verdict, str]:
    """The verdict on a feature with enough rows of good data, and why: drift, some drift, or neither."""
    shift = abs(d.mean_shift or d.projection_shift or 0.0)
    numbers = f"PSI {d.psi_corrected:.3f}"
    if d.mean_shift is not None:
        numbers += f", mean {d.mean_shift:+.2f} sigma"
    elif d.projection_shift is not None:
        numbers += f", mean of a projection moved by {shift:.2f} sigma"
    if adjusted_p_value > policy.fdr:
        return Verdict.NO_DRIFT, f"not significant (p {adjusted_p_value:.3g}); {numbers}"
    large, moved = d.psi_corrected >= rule.psi_alert, d.psi_corrected >= rule.psi_warning
    counts = rule.counts(d.mean_shift)
    if large or moved or shift >= MEAN_SHIFT_WARNING:
        if counts:
            limit = "at least" if large else "moved, less than"
            return Verdict.DRIFT if large else Verdict.WARNING, f"{numbers}: {limit} {rule.psi_alert:g}"
        numbers += f": only a mean that moves {Direction(rule.direction).name} counts"
    for what, rate, expected, counted in (
        ("missing or unusable", d.null_rate, d.reference_null_rate, True),
        ("unseen or out of range", d.unseen_rate, d.reference_unseen_rate, counts),
    ):
        if counted and rate - expected >= RATE_WARNING:
            return Verdict.WARNING, f"{rate:.1%} of values are {what}, {expected:.1%} in the reference"
    return Verdict.NO_DRIFT, f"significant but small; {numbers}" if not moved else numbers


def judge_window(features: Sequence[FeatureDrift], rows: int, policy: MonitorPolicy) -> tuple[Verdict, str]:
    """The verdict on the features of a window as a whole. Bad data takes precedence over drift, because it
    distorts the drift statistics. Silenced features do not count."""
    if rows < policy.min_predictions:
        return Verdict.INSUFFICIENT, f"{rows} predictions, {policy.min_predictions} needed"
    counted = [d for d in features if not d.silenced]
    silent = len(features) - len(counted)
    silenced = f" ({silent} silenced)" if silent else ""
    for verdict, what in (
        (Verdict.DATA_QUALITY, "bad data"),
        (Verdict.DRIFT, "major drift"),
        (Verdict.WARNING, "some drift"),
    ):
        hit = [d for d in counted if d.verdict == verdict]
        if hit:
            named = "; ".join(f"{d.feature}: {d.reason}" for d in hit[:3])
            more = f"; and {len(hit) - 3} more" if len(hit) > 3 else ""
            return verdict, f"{what} in {len(hit)} of {len(features)} features{silenced}: {named}{more}"
    return Verdict.NO_DRIFT, f"none of {len(features)} features{silenced} drifted over {rows} predictions"


def feature_from_json(stored: Mapping[str, Any]) -> FeatureDrift:
    return FeatureDrift(**{**stored, "verdict": Verdict(stored["verdict"])})
