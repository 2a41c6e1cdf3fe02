"""Contract tests of comparisons between a challenger and the champion."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from flywheel_common.errors import InvalidName
from flywheel_monitor.comparison.errors import InvalidReleases
from flywheel_monitor.comparison.rollout_evidence import rollout_evidence
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
    for n, generation, expected in ((200, 1, 3.0), (20_000, 2, 80.0)):
        ids = [f"{generation}-{i}" for i in range(n)]
        latencies = np.where(np.arange(n) % 33 == 0, 90.0, 3.0)
        canary = {"rollout": ROLLOUT, "version": 2, "release": 2, "role": CHALLENGER}
        await monitor.predicted(predictions(ids, latencies=latencies, generation=generation, **canary))
        found = await monitor.compare(shadow=False, generation=generation)
        assert expected / 1.1 <= found.p99_lower_ms <= expected * 1.1
        assert found.comparison.challenger.latency_p99_ms > 89.0


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
