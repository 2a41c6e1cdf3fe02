"""Contract tests of comparisons between a challenger and the champion."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from flywheel_common.errors import InvalidName
from flywheel_monitor.comparison.errors import InvalidAlpha, InvalidLimit, InvalidReleases
from flywheel_monitor.comparison.rollout_evidence import rollout_evidence
from flywheel_monitor.comparison.step_verdicts import LimitVerdict, StepLimits
from tests.support.builders.monitor import (
    CHALLENGER,
    MODEL,
    SHADOW,
    START_US,
    log_losses,
    outcomes,
    predictions,
    scored_labels,
    version_name,
)
from tests.support.servers.monitor import LocalMonitor

ROLLOUT = f"{MODEL}/rollouts/1"


async def test_a_shadow_is_compared_over_requests_that_both_predicted(monitor: LocalMonitor) -> None:
    ids, scores, labels = scored_labels(100)
    challenger = np.clip(scores + np.random.default_rng(9).normal(0, 0.1, 100), 0.02, 0.98)
    times = [START_US + i * 1_000_000 for i in range(100)]
    nothing = (await monitor.compare(shadow=True)).comparison
    assert (0, 0, np.inf) == (nothing.labelled, nothing.champion.predictions, nothing.loss.upper)
    await monitor.labelled(outcomes(ids[:40], labels[:40]))
    shadow = predictions(
        ids[:90], challenger[:90], times=times[:90], version=2, release=2, role=SHADOW, rollout=ROLLOUT
    )
    await monitor.predicted(shadow)
    await monitor.predicted(predictions(ids, scores, times=times, rollout=ROLLOUT))
    await monitor.predicted(predictions(["elsewhere"], [0.9], times=[times[0]]))
    await monitor.labelled(outcomes(ids[40:70], labels[40:70]))
    evidence = await monitor.compare(shadow=True)
    found = evidence.comparison
    difference = log_losses(challenger[:70], labels[:70]) - log_losses(scores[:70], labels[:70])
    low, high = stats.ttest_1samp(difference, 0).confidence_interval(0.90)
    assert (100, 90, 70) == (found.champion.predictions, found.challenger.predictions, found.labelled)
    assert difference.mean() == pytest.approx(found.loss.delta, abs=1e-9)
    assert (low, high) == pytest.approx((found.loss.lower, found.loss.upper), abs=1e-9)
    assert ((challenger >= 0.5) != (scores >= 0.5))[:90].mean() == pytest.approx(found.disagreement_rate)
    assert (challenger - scores)[:90].mean() == pytest.approx(found.score_difference, abs=1e-9)
    right = [((s >= 0.5) == (labels == 1))[:70] for s in (scores, challenger)]
    assert ((right[0] & ~right[1]).sum(), (right[1] & ~right[0]).sum()) == found.right
    assert min(found.right) > 0
    assert (times[2], times[97]) == evidence.covered, "the third oldest and the third newest"
    since = (await monitor.compare(shadow=True, since_us=times[50])).comparison
    assert (50, 40, 20) == (since.champion.predictions, since.challenger.predictions, since.labelled)


async def test_a_comparison_counts_only_the_predictions_of_its_step(monitor: LocalMonitor) -> None:
    """Both steps have predictions of the same event times, as when a step follows before labels arrive."""
    for generation, n in ((4, 30), (5, 50)):
        ids, times = [f"{generation}-{i}" for i in range(n)], [START_US + i * 1_000_000 for i in range(n)]
        step = {"times": times, "rollout": ROLLOUT, "generation": generation}
        await monitor.predicted(predictions(ids, **step))
        theirs = [f"{i}'" for i in ids]
        await monitor.predicted(predictions(theirs, version=2, release=2, role=CHALLENGER, **step))
    for generation, n in ((4, 30), (5, 50), (6, 0), (0, 80)):
        found = (await monitor.compare(shadow=False, generation=generation)).comparison
        assert (n, n) == (found.champion.predictions, found.challenger.predictions)


@pytest.mark.parametrize("role", [SHADOW, CHALLENGER])
async def test_one_request_with_a_wrong_time_bakes_nothing(monitor: LocalMonitor, role: int) -> None:
    times = [START_US + i * 1_000_000 for i in range(50)]
    ids = [f"{i}" for i in range(50)]
    for wrong in ([], [START_US - 10**15], [START_US - 10**15, START_US + 10**15]):
        mine, at = [*ids, *(f"wrong-{w}" for w in wrong)], [*times, *wrong]
        await monitor.predicted(predictions(mine, times=at, rollout=ROLLOUT))
        if role == SHADOW:
            shadow = predictions(mine, times=at, version=2, release=2, role=SHADOW, rollout=ROLLOUT)
            await monitor.predicted(shadow)
        found = (await monitor.compare(shadow=role == SHADOW)).covered
        assert found is not None
        assert times[1] <= found[0] <= times[2] and times[47] <= found[1] <= times[48]


async def test_a_canary_is_compared_by_means(monitor: LocalMonitor) -> None:
    ids, scores, labels = scored_labels(60)
    sources = [4] * 5 + [1] * 15
    await monitor.predicted(predictions(ids[:40], scores[:40], rollout=ROLLOUT))
    canary = predictions(
        ids[40:],
        scores[40:],
        rollout=ROLLOUT,
        version=2,
        release=2,
        role=CHALLENGER,
        sources=sources,
        latencies=np.linspace(1, 20, 20),
    )
    await monitor.predicted(canary)
    await monitor.labelled(outcomes(ids, labels))
    found = (await monitor.compare(shadow=False)).comparison
    assert (40, 40) == (found.champion.predictions, found.champion.labelled)
    assert (20, 15) == (found.challenger.predictions, found.challenger.labelled)
    assert 0.25 == found.challenger.error_rate
    assert 20.0 <= found.challenger.latency_p99_ms <= 22.0
    a, b = log_losses(scores[45:], labels[45:]), log_losses(scores[:40], labels[:40])
    low, high = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.90)
    assert (low, high) == pytest.approx((found.loss.lower, found.loss.upper), abs=1e-9)
    assert found.disagreement_rate is None


async def test_named_variants_are_compared_whatever_their_role(monitor: LocalMonitor) -> None:
    """A holdback serves an old release as challenger, or the champion's release as champion."""
    holdback, new = f"{MODEL}/variants/holdback", f"{MODEL}/variants/new"
    ids = [f"{i}" for i in range(60)]
    await monitor.predicted(
        predictions(ids[:10], rollout=holdback, generation=3),
        predictions(ids[10:30], rollout=holdback, role=CHALLENGER, generation=4),
        predictions(ids[30:], rollout=new, version=2, release=2, role=CHALLENGER, generation=4),
        predictions(ids, rollout=new, version=2, release=2, role=SHADOW, generation=4),
        predictions(["elsewhere"]),
    )
    releases = f"{MODEL}/releases/1", f"{MODEL}/releases/2"
    for generation, control in ((0, 30), (4, 20)):
        found = await rollout_evidence(
            monitor.store,
            new,
            *releases,
            shadow=False,
            start_us=None,
            alpha=0.0,
            generation=generation,
            champion_source=holdback,
        )
        sides = found.comparison.champion, found.comparison.challenger
        assert [control, 30] == [side.predictions for side in sides]
    elsewhere = f"{MODEL.replace('late', 'early')}/variants/new"
    for source, refused in ((MODEL, InvalidName), (elsewhere, InvalidReleases)):
        with pytest.raises(refused):
            await rollout_evidence(
                monitor.store, new, *releases, shadow=False, start_us=None, alpha=0.0, champion_source=source
            )


async def test_a_named_variant_shadows_champions_of_any_source(
    monitor: LocalMonitor,
) -> None:
    source = f"{MODEL}/variants/next"
    ids, scores, labels = scored_labels(90)
    other = np.clip(scores + 0.1, 0.02, 0.98)
    copies = predictions(ids, other, rollout=source, version=2, release=2, role=SHADOW, generation=9)
    await monitor.labelled(outcomes(ids[:20], labels[:20]))
    await monitor.predicted(predictions(ids[:30], scores[:30]))
    await monitor.predicted(copies)
    await monitor.predicted(
        predictions(ids[30:60], scores[30:60], rollout=ROLLOUT, generation=8),
        predictions(ids[60:70], scores[60:70]),
        predictions(ids[70:], scores[70:], role=CHALLENGER, rollout=ROLLOUT, generation=8),
    )
    await monitor.labelled(outcomes(ids[20:70], labels[20:70]))
    releases = f"{MODEL}/releases/1", f"{MODEL}/releases/2"
    evidence = await rollout_evidence(
        monitor.store, source, *releases, shadow=True, start_us=None, alpha=0.0, generation=0
    )
    found = evidence.comparison
    assert (40, 90, 70) == (found.champion.predictions, found.challenger.predictions, found.labelled)
    difference = log_losses(other[:70], labels[:70]) - log_losses(scores[:70], labels[:70])
    assert difference.mean() == pytest.approx(found.loss.delta, abs=1e-9)
    assert ((other >= 0.5) != (scores >= 0.5))[:70].mean() == pytest.approx(found.disagreement_rate)
    assert evidence.covered is not None


async def test_the_p99_latency_has_a_lower_bound(monitor: LocalMonitor) -> None:
    """3 % of the answers are slow: too few of 200 answers to prove it, enough of 20,000."""
    for n, generation, expected, breached in ((200, 1, 3.0, False), (20_000, 2, 80.0, True)):
        ids = [f"{generation}-{i}" for i in range(n)]
        latencies = np.where(np.arange(n) % 33 == 0, 90.0, 3.0)
        canary = {"rollout": ROLLOUT, "version": 2, "release": 2, "role": CHALLENGER}
        await monitor.predicted(predictions(ids, latencies=latencies, generation=generation, **canary))
        limits = StepLimits(max_p99_ms=50.0)
        found = await monitor.compare(shadow=False, generation=generation, limits=limits)
        (verdict,) = found.verdicts
        assert (generation, n, breached) == (
            found.generation,
            verdict.rows,
            verdict.verdict is LimitVerdict.BREACHED,
        )
        assert verdict.lower is not None and expected / 1.1 <= verdict.lower <= expected * 1.1
        assert verdict.value == found.comparison.challenger.latency_p99_ms > 89.0


@pytest.mark.parametrize("shadow", [True, False])
async def test_a_step_is_judged_by_its_own_predictions(monitor: LocalMonitor, shadow: bool) -> None:
    """Two steps with opposite results have opposite verdicts on the same limits."""
    role = SHADOW if shadow else CHALLENGER
    limits = StepLimits(max_loss_delta=0.05, max_error_rate=0.1, max_score_shift=1.0, breach_alpha=0.01)
    rng = np.random.default_rng(4)
    for generation, worse in ((4, False), (5, True)):
        ids, _, labels = scored_labels(400)
        mine = [f"{generation}-{i}" for i in ids]
        theirs = mine if shadow else [f"{i}'" for i in mine]
        scores = np.clip(labels * 0.6 + 0.2 + rng.normal(0, 0.05, 400), 0.02, 0.98)
        other = 1 - scores if worse else np.clip(scores + rng.normal(0, 0.01, 400), 0.02, 0.98)
        step = {"rollout": ROLLOUT, "generation": generation}
        sources = [4] * 120 + [1] * 280 if worse else [1] * 400
        await monitor.predicted(predictions(mine, scores, **step))
        await monitor.predicted(
            predictions(theirs, other, version=2, release=2, role=role, sources=sources, **step)
        )
        await monitor.labelled(outcomes([*mine, *theirs], [*labels, *labels]))
        found = await monitor.compare(shadow=shadow, generation=generation, limits=limits)
        loss, errors, shift = found.verdicts
        assert (LimitVerdict.BREACHED if worse else LimitVerdict.WITHIN) is loss.verdict
        answered = slice(120, 400) if worse else slice(0, 400)
        mine_loss, their_loss = log_losses(scores, labels), log_losses(other, labels)[answered]
        if shadow:
            differences = their_loss - mine_loss[answered]
            error = differences.std(ddof=1) / np.sqrt(len(differences))
        else:
            variances = mine_loss.var(ddof=1) / 400 + their_loss.var(ddof=1) / len(their_loss)
            differences, error = their_loss.mean() - mine_loss.mean(), np.sqrt(variances)
        # Howard et al. 2021, equation 14, tuned to 30 rows.
        n, rho = len(their_loss), 30 / 8
        bound = {
            level: error * np.sqrt(2 * (n + rho) / n * np.log(np.sqrt((n + rho) / rho) / (2 * level) + 1))
            for level in (0.01, 0.05)
        }
        assert (n, np.mean(differences)) == (loss.rows, pytest.approx(loss.value, abs=1e-9))
        assert loss.lower == pytest.approx(np.mean(differences) - bound[0.01], abs=1e-9)
        assert loss.upper == pytest.approx(np.mean(differences) + bound[0.05], abs=1e-9)
        assert (0.3 if worse else 0.0, 400) == (errors.value, errors.rows)
        assert (LimitVerdict.BREACHED if worse else LimitVerdict.UNDECIDED) is errors.verdict
        assert LimitVerdict.UNDECIDED is shift.verdict
        assert shift.lower is not None and shift.lower < shift.value < 1.0
    nothing = await monitor.compare(shadow=shadow, generation=6, limits=limits)
    assert [LimitVerdict.UNDECIDED] * 3 == [one.verdict for one in nothing.verdicts]
    assert [(None, None)] * 3 == [(one.lower, one.upper) for one in nothing.verdicts]


@pytest.mark.parametrize(
    ("fields", "refused"),
    [
        ({"max_loss_delta": np.inf}, InvalidLimit),
        ({"max_error_rate": 0.0}, InvalidLimit),
        ({"max_p99_ms": -1.0}, InvalidLimit),
        ({"max_score_shift": np.nan}, InvalidLimit),
        ({"pass_alpha": 1.0}, InvalidAlpha),
        ({"breach_alpha": np.nan}, InvalidAlpha),
    ],
)
async def test_limits_that_mean_nothing_are_refused(
    monitor: LocalMonitor, fields: dict[str, float], refused: type[Exception]
) -> None:
    with pytest.raises(refused, match=f"limits.{next(iter(fields))}"):
        await monitor.compare(shadow=True, limits=StepLimits(**fields))


async def test_error_rates_of_performance_and_comparison_agree(monitor: LocalMonitor) -> None:
    """A fallback with an error reason is an error in both: the model should have predicted."""
    challenger = predictions(
        list("abcde"),
        rollout=ROLLOUT,
        version=2,
        release=2,
        role=CHALLENGER,
        sources=[1, 1, 3, 3, 4],
        reasons=["", "", "", "MODEL_UNAVAILABLE", "MODEL_UNAVAILABLE"],
    )
    await monitor.predicted(challenger)
    compared = (await monitor.compare(shadow=False)).comparison.challenger
    served = await monitor.performance(version_name(2))
    assert 0.4 == compared.error_rate == served.error_rate
    assert 0.4 == served.fallback_rate
