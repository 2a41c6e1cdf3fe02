"""The second reference against seasonality: the same hours some weeks earlier.

What differs from the training set every Monday morning is no news. A feature that drifted from the training
reference, or whose data is bad, keeps this verdict only as far as it also differs, by the same rule, from the
earlier window: the milder verdict of both holds. The same is true of the scores. Both windows are samples of
dependent rows, so both have a design effect.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from flywheel_monitor.drift import design_effect
from flywheel_monitor.drift.causes import Cause
from flywheel_monitor.drift.features import adjusted_p_values, judge_effect
from flywheel_monitor.drift.score_shift import ScoreShift, score_shift
from flywheel_monitor.drift.statistics import FeatureDrift
from flywheel_monitor.drift.vectors import Columns, cause_of_feature, columns_of, measure_features
from flywheel_monitor.drift.verdict import Verdict
from flywheel_monitor.models.policy import MonitorPolicy
from flywheel_monitor.references.reference import ScoreReference
from flywheel_monitor.windows.bins import FeatureBins
from flywheel_monitor.windows.counts import WindowCounts
from flywheel_monitor.windows.vectors import by_feature

CONFIRMED = (Verdict.WARNING, Verdict.DRIFT, Verdict.DATA_QUALITY)
"""Verdicts against the training reference that the earlier window may make milder."""


def confirm_against(
    earlier: WindowCounts, window: WindowCounts, judged: Sequence[FeatureDrift], policy: MonitorPolicy
) -> tuple[list[FeatureDrift], str]:
    """The verdicts on the features of a window after the comparison with an earlier one, in the same order,
    and what to say about it, if anything. An earlier window with fewer than `min_predictions` rows changes
    nothing."""
    ago = _ago(policy)
    if all(d.verdict not in CONFIRMED for d in judged):
        return list(judged), ""
    if earlier.predictions < policy.min_predictions:
        needed = f"{earlier.predictions} predictions, {policy.min_predictions} needed"
        return list(judged), f"not compared with {ago}: {needed}"
    second = _compared(earlier, window, judged, policy)
    found = [_milder(d, *second[d.feature], ago) for d in judged]
    usual = sum(
        not new.silenced and new.verdict == Verdict.NO_DRIFT != old.verdict
        for old, new in zip(judged, found, strict=True)
    )
    return found, f"{usual} differ from the training reference as {ago}" if usual else ""


def confirm_score(
    earlier: WindowCounts, window: WindowCounts, judged: ScoreShift, policy: MonitorPolicy
) -> ScoreShift:
    """The verdict on the scores of a window after the comparison with an earlier one: prediction drift only
    if they differ from both references."""
    if judged.verdict != Verdict.DRIFT or earlier.scored < policy.min_predictions:
        return judged
    ago = _ago(policy)
    mean, stddev = earlier.score_moments()
    reference = ScoreReference(
        mean,
        stddev,
        earlier.scored,
        tuple(earlier.scores.tolist()),
        tuple(earlier.predicted.tolist()),
        tuple(map(tuple, earlier.projection_blocks().sum(axis=0).tolist())),
    )
    second = score_shift(
        *window.score_moments(),
        window.scored,
        window.scores,
        reference,
        policy,
        effect=_score_effect(window),
        reference_effect=_score_effect(earlier),
        classes=window.predicted,
        projections=window.projection_blocks(),
    )
    if second.verdict == Verdict.NO_DRIFT:
        reason = f"as {ago} ({second.reason}); against the reference {judged.reason}"
        return replace(judged, verdict=Verdict.NO_DRIFT, reason=reason)
    if second.verdict == Verdict.DRIFT:
        return replace(judged, reason=f"{judged.reason}; against {ago} {second.reason}")
    return judged


def _score_effect(window: WindowCounts) -> float:
    return design_effect.of_mean(*window.score_blocks(), window.score_moments()[1])


def _ago(policy: MonitorPolicy) -> str:
    weeks = policy.seasonal_weeks
    return f"{weeks} week{'s' if weeks > 1 else ''} earlier"


def _compared(
    earlier: WindowCounts, window: WindowCounts, judged: Sequence[FeatureDrift], policy: MonitorPolicy
) -> dict[str, tuple[Verdict, str]]:
    """Feature → its verdict against the earlier window, and why. All features are measured, because
    significance is adjusted over them."""
    columns, rules = by_feature(window.layout.features), policy.rules()
    before, now = columns_of(earlier), columns_of(window)
    statistics = measure_features(window.layout.features, now, before)
    adjusted = adjusted_p_values([statistics[d.feature][1] for d in judged], [d.silenced for d in judged])
    second = {}
    for d, q in zip(judged, adjusted, strict=True):
        found, _ = statistics[d.feature]
        bad = _cause(columns[d.feature], before, now, policy.data_quality_rate)
        if bad is not None:
            second[d.feature] = Verdict.DATA_QUALITY, bad[1]
            continue
        rule = rules.get(d.feature) or policy.default_rule(d.feature)
        second[d.feature] = judge_effect(found, q, policy, rule)
    return second


def _cause(
    columns: Sequence[FeatureBins], earlier: Columns, window: Columns, rate: float
) -> tuple[Cause, str] | None:
    """What is wrong with a feature that was not wrong in the earlier window. A frozen or rescaled feature has
    no share of bad rows that could be compared: it is usual if the earlier window has the same cause."""
    found = cause_of_feature(columns, window, rate, earlier)
    if found is None:
        return None
    usual = cause_of_feature(columns, earlier, rate)
    by_moments = cause_of_feature(columns, window._replace(moments={}), rate, earlier) is None
    return None if by_moments and usual is not None and usual[0] == found[0] else found


def _milder(d: FeatureDrift, second: Verdict, why: str, ago: str) -> FeatureDrift:
    if d.verdict not in CONFIRMED:
        return d
    if second == Verdict.NO_DRIFT:
        reason = f"as {ago} ({why}); against the training reference {d.reason}"
        return replace(d, verdict=Verdict.NO_DRIFT, cause="", reason=reason)
    verdict = min(d.verdict, second)
    cause = d.cause if verdict == Verdict.DATA_QUALITY else ""
    return replace(d, verdict=verdict, cause=cause, reason=f"{d.reason}; against {ago} {why}")
