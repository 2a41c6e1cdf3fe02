"""Rules of single features: thresholds, direction and silence."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from flywheel_common.event_time import EventTimeOutOfRange
from flywheel_monitor.alerts.lifecycle import Kind
from flywheel_monitor.api import convert_policies
from flywheel_monitor.drift.features import judge_features, judge_window
from flywheel_monitor.drift.score_shift import ScoreShift
from flywheel_monitor.drift.statistics import FeatureDrift, measure
from flywheel_monitor.drift.verdict import Verdict
from flywheel_monitor.evaluation.report import Report
from flywheel_monitor.evaluation.verdicts import verdicts
from flywheel_monitor.models.errors import InvalidPolicy
from flywheel_monitor.models.feature_rule import Direction, FeatureRule
from flywheel_monitor.models.policy import MonitorPolicy
from flywheel_monitor.performance.quality import Quality
from flywheel_monitor.references.reference import Reference
from flywheel_monitor.references.version import WatchedVersion
from flywheel_monitor.windows.bins import ColumnReference, FeatureBins
from flywheel_monitor.windows.layout import Layout
from flywheel_monitor.windows.span import Span
from flywheel_protos.monitor.v1 import feature_rule_pb2, monitor_pb2

ROWS = 4000
DECILES = stats.norm.ppf(np.linspace(0, 1, 11)[1:-1])
DAY_US = 24 * 3_600_000_000


def normal(name: str) -> FeatureBins:
    """A standard normal reference of 100,000 rows in its deciles."""
    edges = tuple(DECILES.tolist())
    column = ColumnReference(name, True, (10_000,) * 10, edges=edges, stddev=1.0, minimum=-5.0, maximum=5.0)
    return FeatureBins(column)


def quantiles(shift: float) -> np.ndarray:
    """A sample without noise of a normal distribution with this mean."""
    return stats.norm.ppf((np.arange(ROWS) + 0.5) / ROWS) + shift


def judged(
    shifts: dict[str, float], rules: Sequence[FeatureRule], start_us: int = 0, missing: int = 0
) -> dict[str, FeatureDrift]:
    """Name → verdict on normal features whose mean is shifted; the first rows are missing."""
    features = [normal(name) for name in shifts]
    valid = np.arange(ROWS) >= missing
    counts = {
        bins.name: np.bincount(bins.assign(quantiles(shifts[bins.name]), valid, ROWS), minlength=bins.size)
        for bins in features
    }
    policy = MonitorPolicy(feature_rules=tuple(rules)).checked(DAY_US)
    return {d.feature: d for d in judge_features(features, counts, shifts, policy, start_us=start_us)}


def expected_psi(shift: float) -> float:
    """PSI of a normal distribution with this mean against a standard one, over the deciles of the latter."""
    p = np.diff(np.concatenate([[0.0], stats.norm.cdf(DECILES - shift), [1.0]]))
    return float(np.sum((p - 0.1) * np.log(p / 0.1)))


@pytest.mark.parametrize(
    ("psi_warning", "psi_alert", "verdict"),
    [(0.0, 0.0, Verdict.DRIFT), (0.0, 0.6, Verdict.WARNING), (0.5, 0.6, Verdict.WARNING)],
)
def test_a_rule_has_thresholds_of_its_own(psi_warning: float, psi_alert: float, verdict: Verdict) -> None:
    rule = FeatureRule("a", psi_warning, psi_alert)
    found = judged({"a": 0.5, "b": 0.5}, [rule])
    assert 0.2 < expected_psi(0.5) < 0.5
    assert (verdict, Verdict.DRIFT) == (found["a"].verdict, found["b"].verdict)


def test_a_rule_can_be_stricter_than_the_policy() -> None:
    found = judged({"a": 0.3, "b": 0.3}, [FeatureRule("a", 0.02, 0.05)])
    assert 0.05 < expected_psi(0.3) < 0.2
    assert (Verdict.DRIFT, Verdict.WARNING) == (found["a"].verdict, found["b"].verdict)


@pytest.mark.parametrize(
    ("direction", "shift", "verdict"),
    [
        (Direction.UP, 1.0, Verdict.DRIFT),
        (Direction.UP, -1.0, Verdict.NO_DRIFT),
        (Direction.DOWN, 1.0, Verdict.NO_DRIFT),
        (Direction.DOWN, -1.0, Verdict.DRIFT),
        (Direction.BOTH, -1.0, Verdict.DRIFT),
        (Direction.UP, -0.2, Verdict.NO_DRIFT),
        (Direction.UP, 0.2, Verdict.WARNING),
    ],
)
def test_only_a_move_in_the_direction_of_the_rule_counts(
    direction: Direction, shift: float, verdict: Verdict
) -> None:
    found = judged({"a": shift}, [FeatureRule("a", direction=direction)])["a"]
    assert verdict == found.verdict
    assert ("counts" in found.reason) == (verdict == Verdict.NO_DRIFT)
    assert found.psi == pytest.approx(expected_psi(shift), rel=0.02)


def test_values_below_the_range_do_not_count_upwards() -> None:
    found = judged({"a": -4.0}, [FeatureRule("a", direction=Direction.UP)])["a"]
    assert found.unseen_rate == pytest.approx(stats.norm.cdf(-1.0), abs=0.001)
    assert Verdict.NO_DRIFT == found.verdict
    assert Verdict.DRIFT == judged({"a": 4.0}, [FeatureRule("a", direction=Direction.UP)])["a"].verdict


def test_missing_values_count_in_any_direction() -> None:
    found = judged({"a": -1.0}, [FeatureRule("a", direction=Direction.UP)], missing=ROWS // 10)["a"]
    assert Verdict.WARNING == found.verdict
    assert "missing" in found.reason
    found = judged({"a": -1.0}, [FeatureRule("a", direction=Direction.UP)], missing=ROWS // 2)["a"]
    assert Verdict.DATA_QUALITY == found.verdict


def test_categories_have_no_direction() -> None:
    bins = FeatureBins(ColumnReference("c", False, (5000, 5000), categories=("x", "y")))
    counts = np.array([1000, 3000, *[0] * 7])
    policy = MonitorPolicy(feature_rules=(FeatureRule("c", direction=Direction.UP),))
    (found,) = judge_features([bins], {"c": counts}, {}, policy)
    assert Verdict.DRIFT == found.verdict


def test_a_silenced_feature_is_shown_and_does_not_count() -> None:
    found = judged({"a": 2.0, "b": 0.0}, [FeatureRule("a", silenced=True)])
    assert (Verdict.DRIFT, True) == (found["a"].verdict, found["a"].silenced)
    assert (Verdict.NO_DRIFT, False) == (found["b"].verdict, found["b"].silenced)
    verdict, reason = judge_window(list(found.values()), ROWS, MonitorPolicy())
    assert Verdict.NO_DRIFT == verdict
    assert "1 silenced" in reason


def test_a_silence_ends_at_its_event_time() -> None:
    rules = [FeatureRule("a", silenced_until_us=2 * DAY_US)]
    silenced = [judged({"a": 2.0}, rules, start)["a"].silenced for start in (0, 2 * DAY_US - 1, 2 * DAY_US)]
    assert [True, True, False] == silenced


def test_silenced_features_do_not_change_the_significance_of_others() -> None:
    shifts = {"a": 2.0, "b": 0.03, "c": 0.05, "d": 0.02}
    found = judged(shifts, [FeatureRule("a", silenced=True)])
    raw = []
    for name in "bcd":
        bins = normal(name)
        every = np.ones(ROWS, np.bool_)
        counts = np.bincount(bins.assign(quantiles(shifts[name]), every, ROWS), minlength=bins.size)
        raw.append(measure(bins, counts, shifts[name])[1])
    expected = stats.false_discovery_control(raw)
    assert [found[name].adjusted_p_value for name in "bcd"] == pytest.approx(expected.tolist(), rel=1e-12)


def report(features: Sequence[FeatureDrift]) -> Report:
    verdict, reason = judge_window(features, ROWS, MonitorPolicy())
    return Report("v", Span(0, DAY_US), ROWS, tuple(features), ScoreShift(), verdict, reason, "", Quality())


def test_a_silenced_feature_with_bad_data_raises_no_alert() -> None:
    rules = [FeatureRule("a", silenced=True)]
    broken = judged({"a": 0.0, "b": 1.5}, rules, missing=ROWS // 2)
    mended = judged({"a": 0.0, "b": 1.5}, rules)
    features = [broken["a"], mended["b"]]
    found = report(features)
    assert (Verdict.DATA_QUALITY, []) == (broken["a"].verdict, found.causes)
    assert ["b"] == [d.feature for d in found.features_with(Verdict.DATA_QUALITY, Verdict.DRIFT)]
    columns = tuple(normal(name).reference for name in "ab")
    version = WatchedVersion(1, "v", 1, "m", Reference(columns), Layout.of(columns))
    kinds = verdicts(found, version, MonitorPolicy(), (Kind.DATA_DRIFT, Kind.DATA_QUALITY))
    assert {Kind.DATA_DRIFT: Verdict.DRIFT, Kind.DATA_QUALITY: Verdict.NO_DRIFT} == {
        kind: one.verdict for kind, one in kinds.items()
    }
    assert {Kind.DATA_DRIFT: {"b": Verdict.DRIFT}, Kind.DATA_QUALITY: {}} == {
        kind: one.drifted for kind, one in kinds.items()
    }
    only = verdicts(report([broken["a"]]), version, MonitorPolicy(), (Kind.DATA_DRIFT, Kind.DATA_QUALITY))
    assert {Verdict.NO_DRIFT} == {one.verdict for one in only.values()}


def test_a_report_without_silences_is_read_as_before() -> None:
    stored = json.loads(json.dumps(report([FeatureDrift("a", verdict=Verdict.DRIFT)]).to_json()))
    del stored["features"][0]["silenced"]
    assert [False] == [d.silenced for d in Report.from_json(stored).features]


RULES = (
    FeatureRule("a", 0.3, 0.4, Direction.UP),
    FeatureRule("b", silenced=True),
    FeatureRule("c", direction=Direction.DOWN, silenced_until_us=DAY_US),
)


def test_rules_are_stored_and_sent_unchanged() -> None:
    policy = MonitorPolicy(feature_rules=RULES)
    assert policy == MonitorPolicy.from_json(json.loads(json.dumps(policy.to_json())))
    sent = convert_policies.policy_to_proto("projects/p/models/late", policy)
    assert policy == convert_policies.policy_from_proto(
        monitor_pb2.MonitorPolicy.FromString(sent.SerializeToString())
    )


def test_a_policy_stored_without_rules_has_none() -> None:
    stored = MonitorPolicy(psi_alert=0.3).to_json()
    del stored["feature_rules"]
    assert MonitorPolicy(psi_alert=0.3) == MonitorPolicy.from_json(stored)


@pytest.mark.parametrize(
    ("rules", "problem"),
    [
        ([FeatureRule("a", direction=7)], "unknown direction 7"),
        ([FeatureRule("a"), FeatureRule("a", silenced=True)], "a has two rules"),
        ([FeatureRule("a", 0.5, 0.4)], "psi_warning <= psi_alert"),
        ([FeatureRule("a", psi_warning=0.3)], "psi_warning <= psi_alert"),
        ([FeatureRule("a", psi_alert=0.05)], "psi_warning <= psi_alert"),
        ([FeatureRule("a", psi_alert=-1.0)], "psi_warning <= psi_alert"),
        ([FeatureRule("a", psi_warning=float("nan"))], "psi_warning <= psi_alert"),
        ([FeatureRule("a", psi_alert=float("inf"))], "finite"),
        ([FeatureRule("")], "no feature"),
        ([FeatureRule(f"f{i}") for i in range(1001)], "at most 1000"),
    ],
)
def test_an_invalid_rule_is_rejected(rules: list[FeatureRule], problem: str) -> None:
    with pytest.raises(InvalidPolicy) as caught:
        MonitorPolicy(feature_rules=tuple(rules)).checked(60_000_000)
    assert "INVALID_POLICY" == caught.value.reason
    assert problem in caught.value.message


def test_a_silence_until_no_time_is_rejected() -> None:
    rule = feature_rule_pb2.FeatureRule(feature="a")
    rule.silenced_until.SetInParent()
    with pytest.raises(EventTimeOutOfRange):
        convert_policies.policy_from_proto(monitor_pb2.MonitorPolicy(feature_rules=[rule]))
