"""Verdicts on the features of a window: drift, bad data, or neither.

A feature drifts when three conditions hold: enough rows, a significant difference (Benjamini-Hochberg over
the features of the window), and an effect of practical size. In large windows almost every feature differs
significantly, and in small windows PSI is large by chance, so each condition alone gives false alarms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from flywheel_common.arrays import Ints
from flywheel_monitor.drift import chi_square as chi2
from flywheel_monitor.drift import design_effect, distances, fdr, ks, psi
from flywheel_monitor.drift.causes import cause_of
from flywheel_monitor.drift.verdict import Verdict
from flywheel_monitor.models.feature_rule import Direction, FeatureRule
from flywheel_monitor.models.policy import MonitorPolicy
from flywheel_monitor.windows.bins import FeatureBins, Special, null_rate, unseen_rate

MEAN_SHIFT_WARNING = 0.1
"""Mean shift in reference standard deviations that counts as a warning whatever the PSI: a shift of 0.3
sigma has a PSI of only 0.09."""
RATE_WARNING = 0.05
"""Rise of the share of missing, or of unseen and out-of-range, values that counts as a warning."""


@dataclass(frozen=True)
class FeatureDrift:
    """Statistics and verdict of one feature of one window; see `FeatureDrift` of the API."""

    feature: str
    psi: float = 0.0
    psi_corrected: float = 0.0
    ks: float | None = None
    ks_p_value: float | None = None
    chi_square: float | None = None
    chi_square_degrees: int = 0
    chi_square_p_value: float | None = None
    cramers_v: float | None = None
    jensen_shannon: float = 0.0
    wasserstein: float | None = None
    effective_rows: float = 0.0
    adjusted_p_value: float = 1.0
    mean_shift: float | None = None
    null_rate: float = 0.0
    reference_null_rate: float = 0.0
    unseen_rate: float = 0.0
    reference_unseen_rate: float = 0.0
    verdict: Verdict = Verdict.NO_DRIFT
    reason: str = ""
    cause: str = ""
    silenced: bool = False


def measure(
    bins: FeatureBins,
    counts: Ints,
    mean_shift: float | None,
    blocks: Ints | None = None,
    reference_blocks: Ints | None = None,
) -> tuple[FeatureDrift, float]:
    """The statistics of one feature and its p-value before adjustment.

    Numeric: KS of the finite values and chi-square of present against missing and out of range, the
    smaller p doubled (Bonferroni), so that a null burst is as significant as a shift. Categorical:
    chi-square over all bins. `blocks` [B, size]: the counts of consecutive parts of the window, from which
    the design effect is estimated; None: rows are independent. `reference_blocks` are those of another
    window, which the counts are compared with in place of the training set."""
    reference = bins.reference_counts if reference_blocks is None else reference_blocks.sum(axis=0)
    against = reference_blocks
    window_coarse, reference_coarse = psi.coarse(bins, counts), psi.coarse(bins, reference)
    found = FeatureDrift(
        feature=bins.name,
        psi=psi.psi(window_coarse, reference_coarse),
        jensen_shannon=distances.jensen_shannon(window_coarse, reference_coarse),
        null_rate=null_rate(bins, counts),
        reference_null_rate=null_rate(bins, reference),
        unseen_rate=unseen_rate(bins, counts),
        reference_unseen_rate=unseen_rate(bins, reference),
    )
    if not bins.numeric:
        effect, other = (1.0 if b is None else design_effect.of_shares(b) for b in (blocks, against))
        test = chi2.chi_square(*chi2.pooled(counts, reference), effect, other)
        found = replace(
            found,
            psi_corrected=psi.corrected(window_coarse, reference_coarse, effect, other),
            chi_square=test.statistic,
            chi_square_degrees=test.degrees,
            chi_square_p_value=test.p_value,
            cramers_v=test.cramers_v,
            effective_rows=counts.sum() / effect,
        )
        return found, test.p_value
    a, b = ks.ordered(bins, counts), ks.ordered(bins, reference)
    effect, other = (
        1.0 if rows is None else design_effect.of_order(ks.ordered(bins, rows)) for rows in (blocks, against)
    )
    statistic = ks.ks_statistic(a, b)
    ks_p = ks.ks_p_value(statistic, float(a.sum()) / effect, float(b.sum()) / other)
    kind_effects = (
        1.0 if rows is None else design_effect.of_shares(_kinds(bins, rows)) for rows in (blocks, against)
    )
    kinds = chi2.chi_square(*chi2.pooled(_kinds(bins, counts), _kinds(bins, reference)), *kind_effects)
    spread = bins.reference.stddev
    found = replace(
        found,
        psi_corrected=psi.corrected(window_coarse, reference_coarse, effect, other),
        ks=statistic,
        ks_p_value=ks_p,
        wasserstein=distances.wasserstein(a, b, bins.positions) / spread if spread > 0 else None,
        mean_shift=mean_shift,
        effective_rows=float(counts.sum()) / effect,
    )
    return found, min(1.0, 2 * min(ks_p, kinds.p_value))


def _kinds(bins: FeatureBins, counts: Ints) -> Ints:
    """Rows that are [present, missing, far] in the last axis. The KS test covers finite values only and does
    not see these shares."""
    s = counts[..., bins.regular :]
    missing = s[..., Special.NULL] + s[..., Special.NON_FINITE] + s[..., Special.MALFORMED]
    far = s[..., Special.FAR]
    return np.stack([counts.sum(axis=-1) - missing - far, missing, far], axis=-1)


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
    """The verdict on every feature, most drifted first. Per feature name `counts` [size]; for the design
    effect, `blocks` [B, size]; for the causes of bad data, `moments` (`WindowCounts.moments`). `start_us`:
    the event time at which the window begins, which decides what is silenced."""
    blocks, moments = blocks or {}, moments or {}
    rules = policy.rules()
    measured = []
    for bins in features:
        found, p = measure(bins, counts[bins.name], mean_shifts.get(bins.name), blocks.get(bins.name))
        rule = rules.get(bins.name) or policy.default_rule(bins.name)
        measured.append((bins, replace(found, silenced=rule.silent(start_us)), p, rule))
    adjusted = adjusted_p_values([(found, p) for _, found, p, _ in measured])
    judged = []
    for (bins, found, _, rule), q in zip(measured, adjusted, strict=True):
        d = replace(found, adjusted_p_value=q)
        judged.append(_judge(bins, counts[bins.name], d, policy, rule, moments.get(bins.name)))
    return sorted(judged, key=lambda d: (-d.psi_corrected, d.feature))


def adjusted_p_values(measured: Sequence[tuple[FeatureDrift, float]]) -> list[float]:
    """The p-values after Benjamini-Hochberg. Silenced features are adjusted by themselves: one that drifts
    for ever would make smaller differences of the others significant."""
    silenced = np.array([found.silenced for found, _ in measured], np.bool_)
    raw = np.array([p for _, p in measured], np.float64)
    for group in (silenced, ~silenced):
        raw[group] = fdr.adjust(raw[group])
    found: list[float] = raw.tolist()
    return found


def _judge(
    bins: FeatureBins,
    counts: Ints,
    d: FeatureDrift,
    policy: MonitorPolicy,
    rule: FeatureRule,
    moments: tuple[float, float] | None,
) -> FeatureDrift:
    rows = int(counts.sum())
    if rows < policy.min_predictions:
        return replace(
            d, verdict=Verdict.INSUFFICIENT, reason=f"{rows} rows, {policy.min_predictions} needed"
        )
    bad = cause_of(bins, counts, moments, policy.data_quality_rate)
    if bad is not None:
        return replace(d, verdict=Verdict.DATA_QUALITY, cause=bad[0].value, reason=bad[1])
    return judge_effect(d, policy, rule)


def judge_effect(d: FeatureDrift, policy: MonitorPolicy, rule: FeatureRule) -> FeatureDrift:
    """The verdict on a feature with enough rows of good data: drift, some drift, or neither."""
    shift = abs(d.mean_shift or 0.0)
    numbers = f"PSI {d.psi_corrected:.3f}" + (
        f", mean {d.mean_shift:+.2f} sigma" if d.mean_shift is not None else ""
    )
    if d.adjusted_p_value > policy.fdr:
        return replace(d, reason=f"not significant (p {d.adjusted_p_value:.3g}); {numbers}")
    large, moved = d.psi_corrected >= rule.psi_alert, d.psi_corrected >= rule.psi_warning
    counts = rule.counts(d.mean_shift)
    if large or moved or shift >= MEAN_SHIFT_WARNING:
        if counts:
            verdict = Verdict.DRIFT if large else Verdict.WARNING
            limit = "at least" if large else "moved, less than"
            return replace(d, verdict=verdict, reason=f"{numbers}: {limit} {rule.psi_alert:g}")
        numbers += f": only a mean that moves {Direction(rule.direction).name} counts"
    for what, rate, expected, counted in (
        ("missing or unusable", d.null_rate, d.reference_null_rate, True),
        ("unseen or out of range", d.unseen_rate, d.reference_unseen_rate, counts),
    ):
        if counted and rate - expected >= RATE_WARNING:
            reason = f"{rate:.1%} of values are {what}, {expected:.1%} in the reference"
            return replace(d, verdict=Verdict.WARNING, reason=reason)
    return replace(d, reason=f"significant but small; {numbers}" if not moved else numbers)


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
