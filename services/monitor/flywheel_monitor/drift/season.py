"""The second reference against seasonality: the same hours some weeks earlier.

What differs from the training set every Monday morning is no news. A feature that drifted from the training
reference keeps this verdict only as far as it also differs, by the same rule, from the earlier window: the
milder verdict of both holds. Both windows are samples of dependent rows, so both have a design effect.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from flywheel_monitor.drift.features import FeatureDrift, adjusted_p_values, judge_effect, measure
from flywheel_monitor.drift.verdict import Verdict
from flywheel_monitor.models.policy import MonitorPolicy
from flywheel_monitor.windows.bins import FeatureBins
from flywheel_monitor.windows.counts import WindowCounts


def confirm_against(
    earlier: WindowCounts, window: WindowCounts, judged: Sequence[FeatureDrift], policy: MonitorPolicy
) -> tuple[list[FeatureDrift], str]:
    """The verdicts on the features of a window after the comparison with an earlier one, in the same order,
    and what to say about it, if anything. Bad data, and an earlier window with fewer than `min_predictions`
    rows, change nothing."""
    weeks = policy.seasonal_weeks
    ago = f"{weeks} week{'s' if weeks > 1 else ''} earlier"
    if all(d.verdict not in (Verdict.WARNING, Verdict.DRIFT) for d in judged):
        return list(judged), ""
    if earlier.predictions < policy.min_predictions:
        needed = f"{earlier.predictions} predictions, {policy.min_predictions} needed"
        return list(judged), f"not compared with {ago}: {needed}"
    second = _compared(earlier, window, judged, policy)
    found = [_milder(d, second[d.feature], ago) for d in judged]
    usual = sum(
        not new.silenced and new.verdict == Verdict.NO_DRIFT != old.verdict
        for old, new in zip(judged, found, strict=True)
    )
    return found, f"{usual} differ from the training reference as {ago}" if usual else ""


def _compared(
    earlier: WindowCounts, window: WindowCounts, judged: Sequence[FeatureDrift], policy: MonitorPolicy
) -> dict[str, FeatureDrift]:
    """Feature → its verdict against the earlier window. All features are measured, because significance is
    adjusted over them."""
    bins = {one.name: one for one in window.layout.features}
    rules = policy.rules()
    measured = []
    for d in judged:
        of = bins[d.feature]
        found, p = measure(
            of,
            window.feature(of),
            _mean_shift(of, earlier, window),
            window.feature_blocks(of),
            earlier.feature_blocks(of),
        )
        measured.append((replace(found, silenced=d.silenced), p))
    return {
        found.feature: judge_effect(
            replace(found, adjusted_p_value=q),
            policy,
            rules.get(found.feature) or policy.default_rule(found.feature),
        )
        for (found, _), q in zip(measured, adjusted_p_values(measured), strict=True)
    }


def _mean_shift(bins: FeatureBins, earlier: WindowCounts, window: WindowCounts) -> float | None:
    """The difference of the means in standard deviations of the training reference."""
    before, now = earlier.mean_shift(bins.name), window.mean_shift(bins.name)
    return None if before is None or now is None else now - before


def _milder(d: FeatureDrift, second: FeatureDrift, ago: str) -> FeatureDrift:
    if d.verdict not in (Verdict.WARNING, Verdict.DRIFT):
        return d
    if second.verdict == Verdict.NO_DRIFT:
        reason = f"as {ago} ({second.reason}); against the training reference {d.reason}"
        return replace(d, verdict=Verdict.NO_DRIFT, reason=reason)
    verdict = min(d.verdict, second.verdict)
    return replace(d, verdict=verdict, reason=f"{d.reason}; against {ago} {second.reason}")
