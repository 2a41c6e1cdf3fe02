"""Drift verdicts, watermarks and the alert lifecycle, and how often the verdicts are wrong."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel_monitor.alerts.lifecycle import AlertActions, alert_actions
from flywheel_monitor.drift.features import judge_features, judge_window
from flywheel_monitor.drift.score_shift import score_shift
from flywheel_monitor.drift.verdict import Verdict
from flywheel_monitor.models.policy import MonitorPolicy
from flywheel_monitor.performance.quality import Quality
from flywheel_monitor.performance.verdicts import judge_concept, judge_labels
from flywheel_monitor.references.reference import QualityReference, ScoreReference
from flywheel_monitor.windows.bins import ColumnReference, FeatureBins, Special
from flywheel_monitor.windows.histograms import SCORE_BINS, score_bins
from flywheel_monitor.windows.span import window_of
from flywheel_monitor.windows.watermark import PartitionProgress, progress, watermark

POLICY = MonitorPolicy()
RNG = np.random.default_rng(11)
TRAINING = RNG.normal(size=50_000)


def reference(name: str = "v__x", **changes: object) -> FeatureBins:
    edges = np.quantile(TRAINING, np.linspace(0, 1, 129)[1:-1])
    counts = np.bincount(np.searchsorted(edges, TRAINING, side="left"), minlength=128)
    column = ColumnReference(
        name,
        True,
        tuple(counts.tolist()),
        edges=tuple(edges.tolist()),
        mean=float(TRAINING.mean()),
        stddev=float(TRAINING.std()),
        minimum=float(TRAINING.min()),
        maximum=float(TRAINING.max()),
    )
    return FeatureBins(replace(column, **changes))


def judge(bins: FeatureBins, values: np.ndarray, valid: np.ndarray | None = None) -> Verdict:
    valid = np.ones(len(values), np.bool_) if valid is None else valid
    counts = np.bincount(bins.assign(values, valid, len(values)), minlength=bins.size)
    shift = float((values[valid] - bins.reference.mean).mean() / bins.reference.stddev)
    (found,) = judge_features([bins], {bins.name: counts}, {bins.name: shift}, POLICY)
    return found.verdict


def test_the_same_distribution_is_no_drift() -> None:
    assert judge(reference(), RNG.normal(size=2000)) == Verdict.NO_DRIFT


def test_a_shift_of_one_sigma_is_major_drift() -> None:
    assert judge(reference(), RNG.normal(1.0, 1, size=2000)) == Verdict.DRIFT


def test_a_shift_of_a_third_of_a_sigma_is_some_drift() -> None:
    assert judge(reference(), RNG.normal(0.3, 1, size=2000)) in (Verdict.WARNING, Verdict.DRIFT)


def test_too_few_rows_give_no_verdict() -> None:
    assert judge(reference(), RNG.normal(3, 1, size=400)) == Verdict.INSUFFICIENT


def test_a_half_null_window_is_bad_data() -> None:
    values = RNG.normal(size=2000)
    assert judge(reference(), values, np.arange(2000) % 2 == 0) == Verdict.DATA_QUALITY


def test_a_unit_change_is_bad_data() -> None:
    assert judge(reference(), RNG.normal(size=2000) * 1000) == Verdict.DATA_QUALITY


def test_a_moderate_move_out_of_range_is_drift_not_bad_data() -> None:
    assert judge(reference(), RNG.normal(6.0, 1, size=2000)) == Verdict.DRIFT


def test_new_categories_are_bad_data_but_rare_known_ones_are_not() -> None:
    bins = FeatureBins(ColumnReference("v__c", False, (500, 500), categories=("a", "b")))
    counts = np.array([400, 200, *[0] * 7])
    counts[2 + Special.UNSEEN] = 400
    (found,) = judge_features([bins], {"v__c": counts}, {}, POLICY)
    assert found.verdict == Verdict.DATA_QUALITY
    assert found.unseen_rate == pytest.approx(0.4)
    rare = FeatureBins(ColumnReference("v__c", False, (300, 300), categories=("a", "b"), other_count=400))
    same = np.array([300, 300, *[0] * 7])
    same[2 + Special.UNSEEN] = 400
    (found,) = judge_features([rare], {"v__c": same}, {}, POLICY)
    assert found.verdict == Verdict.NO_DRIFT


def test_a_tiny_shift_in_a_huge_window_is_no_drift() -> None:
    assert judge(reference(), RNG.normal(0.03, 1, size=200_000)) == Verdict.NO_DRIFT


def test_a_constant_feature_is_no_drift() -> None:
    column = ColumnReference("v__k", True, (1000,), mean=4.0, stddev=0.0, minimum=4.0, maximum=4.0)
    bins = FeatureBins(column)
    counts = np.bincount(bins.assign(np.full(800, 4.0), np.ones(800, np.bool_), 800), minlength=bins.size)
    (found,) = judge_features([bins], {"v__k": counts}, {}, POLICY)
    assert found.verdict == Verdict.NO_DRIFT
    assert found.psi == pytest.approx(0.0, abs=1e-9)


def test_bad_data_takes_precedence_over_drift() -> None:
    bins = [reference("v__a"), reference("v__b")]
    every = np.ones(1000, np.bool_)
    shifted, broken = RNG.normal(2, 1, 1000), np.full(1000, np.nan)
    counts = {
        b.name: np.bincount(b.assign(x, every, 1000), minlength=b.size)
        for b, x in zip(bins, (shifted, broken), strict=True)
    }
    features = judge_features(bins, counts, {}, POLICY)
    verdict, reason = judge_window(features, 1000, POLICY)
    assert verdict == Verdict.DATA_QUALITY
    assert "v__b" in reason


def test_at_most_one_false_alarm_in_100_windows_of_20_features() -> None:
    rng = np.random.default_rng(21)
    bins = [reference(f"v__f{i}") for i in range(20)]
    alarms = 0
    for _ in range(100):
        counts = {
            b.name: np.bincount(
                b.assign(rng.normal(size=1000), np.ones(1000, np.bool_), 1000), minlength=b.size
            )
            for b in bins
        }
        judged = judge_features(bins, counts, {}, POLICY)
        alarms += any(d.verdict != Verdict.NO_DRIFT for d in judged)
    assert alarms <= 1


def test_a_small_shift_of_one_in_20_features_is_found_in_3_windows() -> None:
    rng = np.random.default_rng(22)
    bins = [reference(f"v__f{i}") for i in range(20)]
    found = 0
    for _ in range(20):
        verdicts = []
        for _ in range(3):
            values = {b.name: rng.normal(0.3 if b.name == "v__f7" else 0.0, 1, 1000) for b in bins}
            counts = {
                b.name: np.bincount(b.assign(values[b.name], np.ones(1000, np.bool_), 1000), minlength=b.size)
                for b in bins
            }
            judged = judge_features(
                bins, counts, {name: float(v.mean()) for name, v in values.items()}, POLICY
            )
            verdicts.append(next(d.verdict for d in judged if d.feature == "v__f7"))
        recent = [{"v__f7": v} if v != Verdict.NO_DRIFT else {} for v in reversed(verdicts)]
        found += alert_actions(None, recent, POLICY).open
    assert found == 20


def test_bounded_scores_that_move_are_drift_without_a_shift_of_two_sigma() -> None:
    rng = np.random.default_rng(23)
    first, later = rng.beta(2, 5, 5000), rng.beta(4, 4, 5000)
    counts = [np.bincount(score_bins(x), minlength=SCORE_BINS) for x in (first, later)]
    known = ScoreReference(float(first.mean()), float(first.std()), 5000, tuple(counts[0].tolist()))
    found = score_shift(float(later.mean()), float(later.std()), 5000, counts[1], known, POLICY)
    assert abs(found.shift) < POLICY.score_shift
    assert found.verdict == Verdict.DRIFT
    same = score_shift(float(first.mean()), float(first.std()), 5000, counts[0], known, POLICY)
    assert same.verdict == Verdict.NO_DRIFT


def test_dependent_rows_do_not_alarm() -> None:
    """Each row comes ten times: without the design effect, one window of three alarms."""
    rng = np.random.default_rng(24)
    bins = [reference(f"v__f{i}") for i in range(20)]
    alarms, naive = 0, 0
    for _ in range(30):
        counts, blocks, shifts = {}, {}, {}
        for b in bins:
            values = np.repeat(rng.normal(size=200), 10)
            places = b.assign(values, np.ones(2000, np.bool_), 2000)
            blocks[b.name] = np.stack([np.bincount(p, minlength=b.size) for p in np.split(places, 20)])
            counts[b.name] = blocks[b.name].sum(axis=0)
            shifts[b.name] = float(values.mean())
        judged = judge_features(bins, counts, shifts, POLICY, blocks)
        alarms += any(d.verdict != Verdict.NO_DRIFT for d in judged)
        naive += any(d.verdict != Verdict.NO_DRIFT for d in judge_features(bins, counts, shifts, POLICY))
    assert naive > 10
    assert alarms == 0


def test_one_outlier_does_not_move_the_mean() -> None:
    bins, values = reference(), RNG.normal(size=2000)
    values[7] = 1e9
    shift = float(bins.standardized(values, np.ones(2000, np.bool_), 2000).mean())
    assert abs(shift) < 0.1


def test_nulls_that_become_more_frequent_are_a_warning() -> None:
    values, valid = RNG.normal(size=4000), np.arange(4000) % 12 != 0
    assert judge(reference(), values, valid) == Verdict.WARNING


def test_score_shift_depends_on_the_effect_not_on_the_traffic() -> None:
    known = ScoreReference(0.3, 0.1, 10_000)
    nothing = np.zeros(200, np.int64)
    assert score_shift(0.31, 0.1, 10**6, nothing, known, POLICY).verdict == Verdict.NO_DRIFT
    moved = score_shift(0.55, 0.1, 1000, nothing, known, POLICY)
    assert moved.verdict == Verdict.DRIFT
    assert moved.shift == pytest.approx(2.5)
    assert moved.z == pytest.approx(0.25 / np.sqrt(0.01 / 1000 + 0.01 / 10_000))
    assert score_shift(0.55, 0.1, 10, nothing, known, POLICY).verdict == Verdict.INSUFFICIENT
    assert score_shift(0.55, 0.1, 1000, nothing, None, POLICY).verdict == Verdict.INSUFFICIENT


def test_concept_drift_needs_labels_and_a_worse_model() -> None:
    promised = QualityReference(auc=0.8, log_loss=0.4, label_mean=0.3)
    errors = {"auc_error": 0.01, "log_loss_error": 0.02, "calibration_error_error": 0.01}
    good = Quality(labelled=1000, auc=0.79, log_loss=0.41, label_mean=0.31, **errors)
    assert judge_concept(good, promised, POLICY)[0] == Verdict.NO_DRIFT
    assert judge_concept(replace(good, auc=0.70), promised, POLICY)[0] == Verdict.DRIFT
    assert judge_concept(replace(good, log_loss=0.60), promised, POLICY)[0] == Verdict.DRIFT
    noisy = replace(good, auc=0.70, auc_error=0.04), replace(good, log_loss=0.60, log_loss_error=0.07)
    assert all(judge_concept(one, promised, POLICY)[0] == Verdict.NO_DRIFT for one in noisy)
    assert judge_concept(replace(good, labelled=100, auc=0.5), promised, POLICY)[0] == Verdict.INSUFFICIENT
    calibrated = replace(promised, brier=0.12, calibration_error=0.01)
    same = replace(
        good, brier=0.13, brier_error=0.01, calibration_error=0.04, calibration_error_by_chance=0.03
    )
    assert judge_concept(same, calibrated, POLICY)[0] == Verdict.NO_DRIFT
    assert judge_concept(replace(same, brier=0.149), calibrated, POLICY)[0] == Verdict.NO_DRIFT, "by chance"
    worse = replace(same, brier=0.151), replace(same, calibration_error=0.091)
    for one, what in zip(worse, ("Brier score 0.151", "calibration error 0.091"), strict=True):
        verdict, reason = judge_concept(one, calibrated, POLICY)
        assert verdict == Verdict.DRIFT
        assert what in reason
    assert judge_concept(worse[1], promised, POLICY)[0] == Verdict.NO_DRIFT, "no held-out calibration"
    assert judge_labels(good, promised, POLICY)[0] == Verdict.NO_DRIFT
    assert judge_labels(replace(good, label_mean=0.45), promised, POLICY)[0] == Verdict.DRIFT


D, W, Q = Verdict.DRIFT, Verdict.WARNING, Verdict.DATA_QUALITY
A, B = frozenset({"a"}), frozenset({"b"})


@pytest.mark.parametrize(
    ("shown", "recent", "expected"),
    [
        (None, [{"a": D}], AlertActions()),
        (None, [{"a": D}, {}, {}], AlertActions()),
        (None, [{"a": D}, {"a": D}], AlertActions(open=True, announce=True, subjects=A)),
        (None, [{"a": D}, {}, {"a": D}], AlertActions(open=True, announce=True, subjects=A)),
        (None, [{"a": W}, {"a": W}, {}], AlertActions(open=True, subjects=A)),
        (None, [{"a": D}, {"a": W}], AlertActions(open=True, subjects=A)),
        (None, [{"a": Q}, {"a": Q}], AlertActions(open=True, announce=True, subjects=A)),
        (None, [{}, {"a": D}, {"a": D}], AlertActions()),
        (None, [], AlertActions()),
        (None, [{"a": D}, {"b": D}, {"c": D}], AlertActions()),
        (None, [{"a": D, "b": D}, {"b": W}, {"a": W}], AlertActions(open=True, subjects=A | B)),
        (None, [{"a": D, "b": D}, {"b": D}, {}], AlertActions(open=True, announce=True, subjects=B)),
        (None, [{"a": D}, {}, {}, {"a": D}], AlertActions()),
        (A, [{"a": D}, {}, {}], AlertActions(confirm=True, subjects=A)),
        (A, [{"b": D}, {}, {"a": D}], AlertActions()),
        (A, [{"b": D}, {"b": D}, {"a": D}], AlertActions(confirm=True, announce=True, subjects=B)),
        (A, [{}, {}, {"a": D}], AlertActions()),
        (A, [{}, {}, {}], AlertActions(resolve=True)),
        (A, [{"b": D}, {"c": D}, {"d": D}], AlertActions(resolve=True)),
        (A, [{"b": D}, {"b": D}, {}], AlertActions(confirm=True, announce=True, subjects=B)),
        (A, [{}, {}], AlertActions()),
        (A, [], AlertActions()),
    ],
)
def test_alert_actions(
    shown: frozenset[str] | None, recent: list[dict[str, Verdict]], expected: AlertActions
) -> None:
    assert alert_actions(shown, recent, POLICY) == expected


@given(
    st.lists(st.dictionaries(st.sampled_from("abc"), st.sampled_from([D, W])), min_size=1, max_size=6),
    st.integers(1, 4),
    st.integers(0, 3),
)
def test_an_alert_opens_if_and_only_if_one_feature_lasts(
    recent: list[dict[str, Verdict]], k: int, more: int
) -> None:
    policy = replace(POLICY, k_of=k, m_windows=k + more)
    lasts = any(recent[0].get(f) and sum(f in d for d in recent[: k + more]) >= k for f in "abc")
    assert lasts == alert_actions(None, recent, policy).open


@given(st.integers(-(10**15), 10**15), st.integers(1, 10**12))
def test_every_event_lies_in_its_window(event: int, width: int) -> None:
    span = window_of(event, width)
    assert span.start_us <= event < span.end_us
    assert span.end_us - span.start_us == width
    assert span.start_us % width == 0


def test_the_slowest_unread_partition_determines_the_watermark() -> None:
    assert watermark([]) is None
    assert (
        watermark([PartitionProgress(50, False), PartitionProgress(90, True), PartitionProgress(70, False)])
        == 50
    )
    assert watermark([PartitionProgress(50, True), PartitionProgress(90, True)]) == 90


def test_no_progress_while_an_unread_partition_has_shown_no_event() -> None:
    assert progress({0: 10, 1: 20}, frozenset({2})) == []
    assert progress({0: 10, 1: 20}, frozenset({1})) == [
        PartitionProgress(10, True),
        PartitionProgress(20, False),
    ]
