"""The second reference: the same hours some weeks earlier."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from flywheel_monitor.drift import chi_square, psi
from flywheel_monitor.drift.score_shift import ScoreShift
from flywheel_monitor.drift.statistics import measure
from flywheel_monitor.drift.verdict import Verdict
from flywheel_monitor.evaluation.report import Report, report_on
from flywheel_monitor.models.errors import InvalidPolicy
from flywheel_monitor.models.feature_rule import Direction, FeatureRule
from flywheel_monitor.models.policy import WEEK_US, MonitorPolicy
from flywheel_monitor.performance.quality import Quality
from flywheel_monitor.references.reference import Reference, ScoreReference
from flywheel_monitor.references.version import WatchedVersion
from flywheel_monitor.windows.bins import ColumnReference, FeatureBins
from flywheel_monitor.windows.counts import WindowCounts
from flywheel_monitor.windows.layout import Layout
from flywheel_monitor.windows.pane_sums import sum_panes
from flywheel_monitor.windows.panes import PaneAccumulator
from flywheel_monitor.windows.rows import Rows
from flywheel_monitor.windows.span import Span

N = 2000
DECILES = stats.norm.ppf(np.linspace(0, 1, 11)[1:-1])
NORMAL = {"counts": (10_000,) * 10, "edges": tuple(DECILES.tolist()), "stddev": 1.0}
COLUMNS = (
    ColumnReference("a", True, minimum=-5.0, maximum=5.0, **NORMAL),  # type: ignore[arg-type]
    ColumnReference("b", True, minimum=-5.0, maximum=5.0, **NORMAL),  # type: ignore[arg-type]
    ColumnReference("c", False, (5000, 5000), categories=("x", "y")),
)
LAYOUT = Layout.of(COLUMNS)
VERSION = WatchedVersion(1, "v", 1, "m", Reference(COLUMNS), LAYOUT)
POLICY = MonitorPolicy(seasonal_weeks=1)


def window(
    a: float = 0.0,
    b: float = 0.0,
    y: float = 0.5,
    n: int = N,
    *,
    null: float = 0.0,
    new: float = 0.0,
    text: bool = False,
    frozen: bool = False,
    score: float = 0.5,
) -> WindowCounts:
    """n rows: two normal features with these means, and a category with this share of y; of `a` a share is
    null, or it is text or frozen, and a share of the categories is new."""
    grid = stats.norm.ppf((np.arange(n) + 0.5) / n)
    every = np.ones(n, np.bool_)
    scores = score + 0.05 * grid / 3
    shuffled = np.random.default_rng(3).permutation(n)
    category = np.where(shuffled < y * n, "y", "x").astype(object)
    category[shuffled < new * n] = "z"
    first = np.full(n, 0.1) if frozen else grid[shuffled] + a
    column = np.full(n, "x", object) if text else first
    given = {
        "a": (column, shuffled >= null * n),
        "b": (grid[shuffled] + b, every),
        "c": (category, every),
    }
    panes = PaneAccumulator(LAYOUT, 60_000_000)
    ones = np.ones(n, np.int64)
    panes.add_rows(
        Rows(0 * ones, scores, scores[:, None], ~every, ones, scores, scores, ~every, ("",) * n, given)
    )
    return sum_panes(LAYOUT, [(k.start_us, p) for k, p in panes.merge({}).items()])


def report(now: WindowCounts, earlier: WindowCounts | None = None, policy: MonitorPolicy = POLICY) -> Report:
    return report_on(VERSION, Span(WEEK_US, WEEK_US + 1), now, Quality(), policy, earlier=earlier)


def verdicts(found: Report) -> dict[str, Verdict]:
    return {d.feature: d.verdict for d in found.features}


def test_what_was_the_same_a_week_earlier_is_no_drift() -> None:
    alone = report(window(a=1.0, y=0.8))
    assert (Verdict.DRIFT, Verdict.DRIFT) == (verdicts(alone)["a"], verdicts(alone)["c"])
    found = report(window(a=1.0, y=0.8), window(a=1.0, y=0.8))
    assert {"a": Verdict.NO_DRIFT, "b": Verdict.NO_DRIFT, "c": Verdict.NO_DRIFT} == verdicts(found)
    assert Verdict.NO_DRIFT == found.verdict
    assert "2 differ from the training reference as 1 week earlier" in found.reason
    moved = next(d for d in found.features if d.feature == "a")
    assert moved.reason.startswith("as 1 week earlier (")
    assert "against the training reference PSI" in moved.reason
    assert moved.psi == next(d for d in alone.features if d.feature == "a").psi


def test_what_differs_from_both_references_is_drift() -> None:
    found = report(window(a=1.0, b=1.0), window(a=0.0, b=1.0))
    assert {"a": Verdict.DRIFT, "b": Verdict.NO_DRIFT, "c": Verdict.NO_DRIFT} == verdicts(found)
    assert Verdict.DRIFT == found.verdict
    assert "against 1 week earlier PSI" in found.reason


def test_what_differs_from_the_earlier_window_only_is_no_drift() -> None:
    assert Verdict.NO_DRIFT == report(window(), window(a=2.0)).verdict


def test_the_milder_of_both_verdicts_holds() -> None:
    found = report(window(a=1.0), window(a=0.75))
    assert Verdict.WARNING == verdicts(found)["a"]


def test_the_rule_of_a_feature_holds_against_both_references() -> None:
    up = MonitorPolicy(seasonal_weeks=1, feature_rules=(FeatureRule("a", direction=Direction.UP),))
    assert Verdict.DRIFT == verdicts(report(window(a=1.0), window(a=0.0), up))["a"]
    assert Verdict.NO_DRIFT == verdicts(report(window(a=1.0), window(a=2.0), up))["a"]
    assert Verdict.DRIFT == verdicts(report(window(a=1.0), window(a=2.0)))["a"]


def test_too_few_rows_a_week_earlier_change_nothing_and_are_named() -> None:
    few = report(window(a=1.0), window(a=1.0, n=499))
    assert Verdict.DRIFT == few.verdict
    assert "not compared with 1 week earlier: 499 predictions, 500 needed" in few.reason
    assert Verdict.NO_DRIFT == report(window(a=1.0), window(a=1.0, n=500)).verdict


def causes(found: Report) -> dict[str, str]:
    return {d.feature: d.cause for d in found.features if d.cause}


@pytest.mark.parametrize("cause", ["NULL_BURST", "UNIT_CHANGE", "NEW_CATEGORY", "SCHEMA_CHANGE"])
def test_data_that_was_as_bad_a_week_earlier_is_usual(cause: str) -> None:
    bad = {
        "NULL_BURST": {"null": 0.5},
        "UNIT_CHANGE": {"a": 500.0},
        "NEW_CATEGORY": {"new": 0.5},
        "SCHEMA_CHANGE": {"text": True},
    }[cause]
    feature = "c" if cause == "NEW_CATEGORY" else "a"
    alone = report(window(**bad), window())
    assert {feature: cause} == causes(alone) and Verdict.DATA_QUALITY == alone.verdict
    assert "against 1 week earlier" in next(d.reason for d in alone.features if d.feature == feature)
    found = report(window(**bad), window(**bad))
    assert ({}, Verdict.NO_DRIFT) == (causes(found), found.verdict)
    assert [] == found.causes and not found.bad_data
    reason = next(d.reason for d in found.features if d.feature == feature)
    assert reason.startswith("as 1 week earlier")


def test_data_that_is_worse_than_a_week_earlier_is_bad() -> None:
    assert {"a": "NULL_BURST"} == causes(report(window(null=0.9), window(null=0.4)))
    assert {} == causes(report(window(null=0.5), window(null=0.4)))
    few = report(window(null=0.9), window(null=0.9, n=499))
    assert {"a": "NULL_BURST"} == causes(few)


def test_a_usual_frozen_feature_is_usual_and_a_new_one_is_not() -> None:
    frozen = window(a=0.0, frozen=True)
    assert {"a": "FROZEN_FEATURE"} == causes(report(frozen, window()))
    assert {} == causes(report(frozen, frozen))


def test_scores_that_were_the_same_a_week_earlier_are_no_drift() -> None:
    first = ScoreReference(0.3, 0.05, 10_000)
    version = replace(VERSION, first_window=first)

    def judged(now: WindowCounts, earlier: WindowCounts | None) -> ScoreShift:
        span = Span(WEEK_US, WEEK_US + 1)
        return report_on(version, span, now, Quality(), POLICY, earlier=earlier).score

    high, low = window(score=0.6), window(score=0.3)
    assert Verdict.DRIFT == judged(high, None).verdict
    assert Verdict.NO_DRIFT == judged(high, high).verdict
    assert judged(high, high).reason.startswith("as 1 week earlier (")
    assert judged(high, high).shift == judged(high, None).shift
    assert (Verdict.DRIFT, True) == (judged(high, low).verdict, "1 week earlier" in judged(high, low).reason)
    assert Verdict.NO_DRIFT == judged(low, high).verdict
    assert Verdict.DRIFT == judged(high, window(score=0.6, n=499)).verdict


def test_two_windows_are_compared_as_two_samples() -> None:
    bins = FeatureBins(COLUMNS[0])
    rng = np.random.default_rng(8)
    now, before = (
        np.concatenate([np.repeat(DECILES, rng.integers(0, 90, 9)), np.full(extra, 4.0)])
        for extra in (30, 10)
    )
    counted = [
        np.bincount(bins.assign(x, np.ones(len(x), np.bool_), len(x)), minlength=bins.size)
        for x in (now, before)
    ]
    found, _ = measure(bins, counted[0], 0.0, counted[0][None], counted[1][None])
    expected = stats.ks_2samp(now, before, method="asymp")
    assert found.ks == pytest.approx(expected.statistic, abs=1e-9)
    assert found.ks_p_value == pytest.approx(
        stats.kstwobign.sf(expected.statistic * np.sqrt(len(now) * len(before) / (len(now) + len(before)))),
        rel=1e-6,
    )


def test_the_dependence_of_both_windows_counts() -> None:
    a, b = np.array([300, 500, 200]), np.array([250, 450, 300])
    p, q = (a + 0.5) / (1000 + 1.5), (b + 0.5) / (1000 + 1.5)
    moved = float(np.sum((p - q) * np.log(p / q)))
    assert psi.corrected(a, b, 2.0, 3.0) == pytest.approx(moved - 2 * (2.0 + 3.0) / 1000, rel=1e-9)
    statistic = stats.chi2_contingency([a, b], correction=False).statistic
    tested = chi_square.chi_square(a, b, 2.0, 3.0)
    assert tested.p_value == pytest.approx(stats.chi2.sf(statistic / 2.5, 2), rel=1e-9)


def test_the_weeks_are_stored_and_checked() -> None:
    policy = MonitorPolicy(seasonal_weeks=4).checked(60_000_000)
    assert policy == MonitorPolicy.from_json(json.loads(json.dumps(policy.to_json())))
    for invalid in (
        MonitorPolicy(seasonal_weeks=54),
        MonitorPolicy(seasonal_weeks=-1),
        MonitorPolicy(seasonal_weeks=1, window_us=2 * WEEK_US),
    ):
        with pytest.raises(InvalidPolicy):
            invalid.checked(60_000_000)
