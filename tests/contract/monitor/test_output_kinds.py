"""Contract tests of the kinds of model output: what is counted, and quality, comparison and drift by kind."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from flywheel_monitor.drift.score_shift import ScoreShift
from flywheel_monitor.drift.verdict import Verdict
from flywheel_monitor.models.policy import MonitorPolicy
from flywheel_monitor.references.reference import ScoreReference
from flywheel_monitor.windows.span import Span
from tests.support.builders.monitor import (
    CHALLENGER,
    HOUR_US,
    MODEL,
    SHADOW,
    START_US,
    outcomes,
    predictions,
    version_name,
)
from tests.support.servers.monitor import LocalMonitor

MULTICLASS, REGRESSION, VECTOR = 2, 3, 4
ROLLOUT = f"{MODEL}/rollouts/1"
CLASSES = ["early", "late", "on time"]


def class_rows(n: int, seed: int = 0) -> tuple[list[str], np.ndarray, np.ndarray]:
    """n ids, [n, 3] probabilities, and the index of the true class of each row."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet([2.0, 1.0, 3.0], n)
    truth = np.array([rng.choice(3, p=row) for row in p])
    return [f"{seed}-{i}" for i in range(n)], p, truth


def named(truth: np.ndarray) -> list[str]:
    return [CLASSES[c] for c in truth]


def class_losses(p: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return -np.log(p[np.arange(len(truth)), truth])


async def test_multiclass_quality_equals_scikit_learn(monitor: LocalMonitor) -> None:
    ids, p, truth = class_rows(300)
    nan = [np.nan] * 300
    await monitor.labelled(outcomes(ids[:50], nan[:50], class_names=named(truth[:50])))
    wrong = outcomes(ids[50:99], nan[50:99], class_names=named((truth[50:99] + 1) % 3))
    batch = predictions(ids, p, kind=MULTICLASS, class_names=CLASSES, segments=["JFK"] * 100 + [""] * 200)
    await monitor.predicted(batch)
    await monitor.labelled(wrong)
    times = [START_US + 2 * HOUR_US] * 250
    corrected = outcomes(
        ids[50:],
        nan[50:],
        class_names=named(truth[50:]),
        times=times,
        outcome_ids=[f"n-{i}" for i in ids[50:]],
    )
    await monitor.labelled(corrected)
    for segment, at in (("", slice(0, 300)), ("JFK", slice(0, 100))):
        found = (await monitor.performance(segment=segment)).quality
        y, s = truth[at], p[at]
        assert len(y) == found.labelled
        assert metrics.log_loss(y, s, labels=[0, 1, 2]) == pytest.approx(found.log_loss, abs=1e-8)
        assert ((s - np.eye(3)[y]) ** 2).sum(axis=1).mean() == pytest.approx(found.brier, abs=1e-8)
        assert metrics.accuracy_score(y, s.argmax(axis=1)) == pytest.approx(found.accuracy)
        assert metrics.f1_score(y, s.argmax(axis=1), average="macro") == pytest.approx(found.macro_f1)
        assert np.bincount(y, minlength=3).tolist() == list(found.labels)
        assert found.auc is None and found.rmse is None
    assert p.max(axis=1).mean() == pytest.approx((await monitor.performance()).score_mean, abs=1e-8)


async def test_an_unknown_class_is_not_counted(monitor: LocalMonitor) -> None:
    ids, p, truth = class_rows(20)
    await monitor.labelled(outcomes(ids[:2], [np.nan] * 2, class_names=["never", CLASSES[truth[1]]]))
    await monitor.predicted(predictions(ids, p, kind=MULTICLASS, class_names=CLASSES))
    await monitor.labelled(outcomes(ids[2:4], [np.nan, 1.0], class_names=["lost", ""]))
    assert 1 == (await monitor.performance()).quality.labelled


async def test_regression_quality_equals_scikit_learn(monitor: LocalMonitor) -> None:
    rng = np.random.default_rng(3)
    y = rng.normal(300.0, 20.0, 200)
    s = y + rng.normal(1.0, 5.0, 200)
    s[0], y[0] = -2e9, 1e9
    ids = [f"{i}" for i in range(200)]
    await monitor.predicted(predictions(ids, s, kind=REGRESSION))
    await monitor.labelled(outcomes(ids, y))
    found = (await monitor.performance()).quality
    assert metrics.mean_squared_error(y, s) ** 0.5 == pytest.approx(found.rmse, rel=1e-9)
    assert metrics.mean_absolute_error(y, s) == pytest.approx(found.mean_absolute_error, rel=1e-9)
    assert metrics.r2_score(y, s) == pytest.approx(found.r2, rel=1e-9)
    assert y.mean() == pytest.approx(found.label_mean, rel=1e-12)
    assert (200, 200, None, None) == (found.labelled, sum(found.labels), found.auc, found.log_loss)
    moved = await monitor.report(version_name(), START_US, START_US + 60_000_000)
    assert s.std() == pytest.approx(moved.score.stddev, rel=1e-9)


async def test_a_vector_is_counted_by_its_norm(monitor: LocalMonitor) -> None:
    rng = np.random.default_rng(4)
    vectors = rng.normal(0.0, 1.0, (100, 8))
    vectors[0, 3] = np.nan
    ids = [f"{i}" for i in range(100)]
    await monitor.predicted(predictions(ids, vectors, kind=VECTOR))
    await monitor.labelled(outcomes(ids, np.ones(100)))
    found = await monitor.performance()
    assert np.linalg.norm(vectors[1:], axis=1).mean() == pytest.approx(found.score_mean, abs=1e-8)
    assert (100, 0) == (found.predictions, found.quality.labelled)


@pytest.mark.parametrize("kind", [MULTICLASS, REGRESSION])
async def test_a_shadow_of_any_kind_is_compared_by_its_loss(monitor: LocalMonitor, kind: int) -> None:
    ids, p, truth = class_rows(80)
    q = class_rows(80, seed=1)[1]
    if kind == REGRESSION:
        a, b, y = p[:, 0] * 50, q[:, 0] * 50, truth * 20.0
        losses = (b - y) ** 2 - (a - y) ** 2
        names, class_names, values = (), [], y
        differ = np.mean((a >= 0.5) != (b >= 0.5))
        right = (losses > 0)[:60].sum(), (losses < 0)[:60].sum()
    else:
        a, b = p, q
        losses = class_losses(q, truth) - class_losses(p, truth)
        names, class_names, values = CLASSES, named(truth), [np.nan] * 80
        differ = np.mean(p.argmax(axis=1) != q.argmax(axis=1))
        hits = [(x.argmax(axis=1) == truth)[:60] for x in (p, q)]
        right = (hits[0] & ~hits[1]).sum(), (hits[1] & ~hits[0]).sum()
    await monitor.predicted(predictions(ids, a, kind=kind, class_names=names, rollout=ROLLOUT))
    known = outcomes(ids[:60], values[:60], class_names=class_names[:60])
    await monitor.labelled(outcomes(ids[:30], values[:30], class_names=class_names[:30]))
    await monitor.predicted(
        predictions(ids, b, kind=kind, class_names=names, rollout=ROLLOUT, version=2, release=2, role=SHADOW)
    )
    await monitor.labelled(known)
    found = (await monitor.compare(shadow=True)).comparison
    low, high = stats.ttest_1samp(losses[:60], 0).confidence_interval(0.90)
    assert 60 == found.labelled
    assert losses[:60].mean() == pytest.approx(found.loss.delta, abs=1e-8)
    assert (low, high) == pytest.approx((found.loss.lower, found.loss.upper), abs=1e-7)
    assert differ == pytest.approx(found.disagreement_rate)
    assert right == found.right and min(right) > 0


async def test_a_canary_of_another_kind_is_no_evidence(monitor: LocalMonitor) -> None:
    ids = [f"{i}" for i in range(40)]
    await monitor.predicted(predictions(ids[:20], rollout=ROLLOUT))
    await monitor.predicted(
        predictions(ids[20:], kind=REGRESSION, rollout=ROLLOUT, version=2, release=2, role=CHALLENGER)
    )
    await monitor.labelled(outcomes(ids, [1.0] * 40))
    found = (await monitor.compare(shadow=False)).comparison
    assert (0, np.inf, 20, 20) == (
        found.labelled,
        found.loss.upper,
        found.champion.labelled,
        found.challenger.labelled,
    )


async def test_costs_are_averaged_over_the_rows_that_have_one(monitor: LocalMonitor) -> None:
    await monitor.predicted(
        predictions(list("abc"), costs=[0.5, 0.25, np.nan], subjects=list("xyz"), segments=["", "s", "s"])
    )
    await monitor.predicted(predictions(["d"]))
    assert 0.375 == (await monitor.performance()).cost_mean
    assert 0.25 == (await monitor.performance(segment="s")).cost_mean
    assert (await monitor.performance(segment="t")).cost_mean is None


async def test_large_scores_neither_overflow_nor_end_the_process(monitor: LocalMonitor) -> None:
    scores = np.array([46_341.0, 1e12, -1e12, 1e13, 1e300, 0.5])
    await monitor.predicted(predictions(list("abcdef"), scores, kind=REGRESSION))
    await monitor.labelled(outcomes(list("abcdef"), [-1e12, -1e12, 1e12, 0.0, 0.0, 1e12]))
    found = await monitor.performance()
    kept = np.array([46_341.0, 1e12, -1e12, 0.5])
    y = np.array([-1e12, -1e12, 1e12, 1e12])
    assert (6, 4) == (found.predictions, found.quality.labelled)
    assert kept.mean() == pytest.approx(found.score_mean, rel=1e-12)
    assert metrics.mean_squared_error(y, kept) ** 0.5 == pytest.approx(found.quality.rmse, rel=1e-12)


async def test_hours_and_days_give_the_same_window_as_minutes(monitor: LocalMonitor) -> None:
    rng = np.random.default_rng(5)
    offsets = np.sort(rng.integers(0, 80 * HOUR_US, 400))
    scores = rng.uniform(0.1, 0.9, 400)
    labels = (rng.uniform(size=400) < scores).astype(float)
    ids = [f"{i}" for i in range(400)]
    for part in (slice(0, 400, 2), slice(1, 400, 2)):
        times = START_US + offsets[part]
        await monitor.predicted(predictions(ids[part], scores[part], times=times), partition=part.start)
        await monitor.labelled(outcomes(ids[part], labels[part]), partition=part.start)
    async with monitor.store.transaction() as records:
        assert 0 == await records.compact(30 * 24 * HOUR_US), "nothing is that old"
    spans = [(0, 80), (1, 79), (0.5, 47.5), (23.9, 24.1), (12, 36.2), (30, 30.5)]
    for low, high in spans:
        begin, end = int(low * HOUR_US), int(high * HOUR_US)
        found = await monitor.performance(start_us=START_US + begin, end_us=START_US + end)
        inside = (offsets >= begin) & (offsets < end)
        assert int(inside.sum()) == found.predictions == found.quality.labelled
        assert scores[inside].mean() == pytest.approx(found.score_mean, abs=1e-9)
        expected = metrics.log_loss(labels[inside], scores[inside], labels=[0, 1])
        assert expected == pytest.approx(found.quality.log_loss, abs=1e-8)


async def test_compacted_counts_are_read_by_whole_hours(monitor: LocalMonitor) -> None:
    rng = np.random.default_rng(6)
    offsets = np.sort(rng.integers(0, 240 * HOUR_US, 600))
    ids = [f"{i}" for i in range(600)]
    await monitor.predicted(predictions(ids, rng.uniform(size=600), times=START_US + offsets))
    await monitor.labelled(outcomes(ids, np.ones(600)))
    before = await monitor.performance()
    for _ in range(3):
        async with monitor.store.transaction() as records:
            await records.compact(48 * HOUR_US)
    # The eighth newest of the last 32 has reached the tenth day; the boundary is the beginning of the eighth.
    assert before == await monitor.performance()
    for low, high, wide_low, wide_high in (
        (1.5, 30.25, 1, 31),
        (2.5, 2.75, 2, 3),
        (100.5, 235.5, 100, 235.5),
        (235.25, 235.75, 235.25, 235.75),
    ):
        found = await monitor.performance(
            start_us=START_US + int(low * HOUR_US), end_us=START_US + int(high * HOUR_US)
        )
        inside = (offsets >= wide_low * HOUR_US) & (offsets < wide_high * HOUR_US)
        assert int(inside.sum()) == found.predictions == found.quality.labelled
    late = predictions(["late"], times=[START_US + HOUR_US])
    await monitor.predicted(late)
    assert 601 == (await monitor.performance()).predictions


async def test_vectors_drift_by_their_projections_though_their_norms_stay(monitor: LocalMonitor) -> None:
    async with monitor.store.transaction() as records:
        await records.set_policy(MODEL, MonitorPolicy(window_us=HOUR_US, min_predictions=300))
    rng = np.random.default_rng(9)

    async def window(hour: int, turn: int) -> ScoreShift:
        vectors = rng.normal(size=(600, 8)) * np.array([4.0] + [0.5] * 7)
        times = START_US + hour * HOUR_US + np.arange(600) * (HOUR_US // 600)
        ids = [f"{hour}-{i}" for i in range(600)]
        await monitor.predicted(
            predictions(ids, np.roll(vectors, turn, axis=1), kind=VECTOR, times=times.tolist())
        )
        start = START_US + hour * HOUR_US
        return (await monitor.report(start_us=start, end_us=start + HOUR_US)).score

    assert (await window(0, 0)).projections is None
    version_id = await monitor.version_id()
    async with monitor.store.transaction() as records:
        version = await records.version(version_name())
        assert version is not None
        counts = await records.window(version, Span(START_US, START_US + HOUR_US))
        blocks = counts.projection_blocks().sum(axis=0)
        assert (8, 600) == (len(blocks), int(blocks[3].sum()))
        first = ScoreReference(*counts.score_moments(), 600, tuple(counts.scores.tolist()))
        known = replace(first, projections=tuple(map(tuple, blocks.tolist())))
        await records.set_first_window(version_id, known)
    same, turned = await window(1, 0), await window(2, 3)
    assert same.projections is not None and turned.projections is not None
    assert (Verdict.NO_DRIFT, Verdict.DRIFT) == (same.verdict, turned.verdict)
    assert "projections" in turned.reason
    assert abs(turned.shift) < 0.2 and turned.projections.psi > 0.2 > same.projections.psi
