"""One law for answers and outcomes: each has its effect once, in whatever order they come. In memory, in PostgreSQL and through gRPC."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from flywheel_common.errors import InvalidArgument, NotFound, Unavailable
from flywheel_monitor.batches import IngestCounts

MINUTE_US = 60_000_000
HOUR_US = 60 * MINUTE_US
SHADOW, CHALLENGER = 3, 2


def losses(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return -(labels * np.log(scores) + (1 - labels) * np.log(1 - scores))


def spread(n: int, seed: int = 0) -> tuple[list[str], np.ndarray, np.ndarray]:
    """n ids, scores and labels that follow from the scores."""
    rng = np.random.default_rng(seed)
    scores = rng.uniform(0.05, 0.95, n)
    return [f"{seed}-{i}" for i in range(n)], scores, (rng.uniform(size=n) < scores).astype(float)


async def test_the_first_of_equal_answers_counts_and_the_others_are_duplicates(monitor: Any) -> None:
    await monitor.predicted(monitor.batch(["a", "b", "a"], [0.25, 0.75, 0.5]))
    await monitor.predicted(monitor.batch(["b"], [0.125]), monitor.batch(["b", "c"], [0.0625, 0.5]))
    counts, newest, _ = await monitor.asks.status()
    assert IngestCounts(predictions=3, duplicates=3) == counts
    assert monitor.start_us == newest
    found = await monitor.asks.performance(monitor.version())
    assert 3 == found.predictions
    assert (0.25 + 0.75 + 0.5) / 3 == pytest.approx(found.score_mean, abs=1e-9)


async def test_labelled_answers_have_the_quality_that_scikit_learn_computes(monitor: Any) -> None:
    ids, scores, labels = spread(200)
    await monitor.predicted(monitor.batch(ids, scores))
    await monitor.labelled(monitor.outcomes(ids[:150], labels[:150]))
    counts, _, _ = await monitor.asks.status()
    assert IngestCounts(predictions=200, outcomes=150) == counts
    found = await monitor.asks.performance(monitor.version())
    s, y = scores[:150], labels[:150]
    assert (200, 150, 0.75) == (found.predictions, found.labelled, found.coverage)
    assert metrics.roc_auc_score(y, s) == pytest.approx(found.auc, abs=1e-12)
    assert metrics.log_loss(y, s) == pytest.approx(found.log_loss, abs=1e-8)
    assert metrics.brier_score_loss(y, s) == pytest.approx(found.brier, abs=1e-8)
    assert y.mean() == pytest.approx(found.label_mean, abs=1e-9)
    assert scores.mean() == pytest.approx(found.score_mean, abs=1e-8)
    assert 3.0 <= found.latency_p50_ms <= 3.3


async def test_whatever_the_order_the_same_answers_and_labels_give_the_same_window(monitor: Any) -> None:
    ids, scores, labels = spread(60)
    wrong = 1 - labels
    times = [monitor.start_us + i * 10_000_000 for i in range(60)]
    found = []
    for seed in range(4):
        model = f"projects/p{seed}/models/late"

        def answers(at: slice, model: str = model) -> Any:
            mine = [f"{model} {i}" for i in ids[at]]
            return monitor.batch(mine, scores[at], times=times[at], model=model)

        def outcomes(at: slice, values: np.ndarray, later: int, model: str = model) -> Any:
            mine = [f"{model} {i}" for i in ids[at]]
            when = [t + later for t in times[at]]
            known = [f"{later} {i}" for i in mine]
            return monitor.outcomes(mine, values[at], times=when, outcome_ids=known, model=model)

        parts = [slice(0, 20), slice(20, 35), slice(35, 60)]
        work = [(monitor.predicted, answers(p)) for p in parts]
        work += [(monitor.labelled, outcomes(p, wrong, HOUR_US)) for p in parts[:2]]
        work += [(monitor.labelled, outcomes(p, labels, 2 * HOUR_US)) for p in parts]
        work += work[::2]
        if seed:
            random.Random(seed).shuffle(work)
        for act, batch in work:
            await act(batch)
        performance = await monitor.asks.performance(f"{model}/versions/1")
        assert metrics.roc_auc_score(labels, scores) == pytest.approx(performance.auc, abs=1e-12)
        assert metrics.log_loss(labels, scores) == pytest.approx(performance.log_loss, abs=1e-8)
        performance.ClearField("model_version")
        counts, _, _ = await monitor.asks.status(f"p{seed}")
        assert (60, 60, 0) == (counts.predictions, counts.outcomes, counts.orphans)
        found.append((performance, counts))
    assert [found[0]] * 4 == found


async def test_the_label_is_the_newest_one_and_of_equally_new_ones_that_with_the_largest_id(
    monitor: Any,
) -> None:
    await monitor.predicted(monitor.batch(["a"], [0.25]))
    at = monitor.start_us

    async def positive(value: float, time: int, outcome: str) -> bool:
        label = monitor.outcomes(["a"], [value], times=[time], outcome_ids=[outcome])
        await monitor.labelled(label)
        found = await monitor.asks.performance(monitor.version())
        assert (1, 1) == (found.predictions, found.labelled)
        assert losses(np.array([0.25]), np.array([found.label_mean])) == pytest.approx(found.log_loss)
        return bool(found.label_mean)

    assert await positive(1.0, at + 5, "m")
    assert await positive(0.0, at + 4, "z"), "an older one changes nothing"
    assert await positive(0.0, at + 5, "l"), "nor does an equally new one with a smaller id"
    assert not await positive(0.0, at + 5, "n")
    assert await positive(1.0, at + 6, "a")
    both = monitor.outcomes(["a", "a"], [0.0, 1.0], times=[at + 9, at + 8], outcome_ids=["x", "y"])
    await monitor.labelled(both)
    assert 0.0 == (await monitor.asks.performance(monitor.version())).label_mean
    counts, _, _ = await monitor.asks.status()
    assert IngestCounts(predictions=1, outcomes=1, duplicates=6) == counts


async def test_a_label_waits_as_an_orphan_for_its_prediction(monitor: Any) -> None:
    await monitor.labelled(monitor.outcomes(["a", "b", "never"], [1.0, 0.0, 1.0]))
    counts, newest, _ = await monitor.asks.status()
    assert (IngestCounts(outcomes=3, orphans=3), None) == (counts, newest)
    await monitor.predicted(monitor.batch(["a"], role=SHADOW, release=2, version=2))
    assert 3 == (await monitor.asks.status())[0].orphans, "a shadow's answer is none"
    await monitor.predicted(monitor.batch(["b", "c", "a"], [0.25, 0.5, 0.75]))
    assert IngestCounts(3, 3, 1, 0) == (await monitor.asks.status())[0]
    found = await monitor.asks.performance(monitor.version())
    assert (3, 2, 1.0) == (found.predictions, found.labelled, found.auc)


async def test_other_outcomes_are_known_by_their_id_and_label_nothing(monitor: Any) -> None:
    await monitor.predicted(monitor.batch(["a", "b"]))
    for _ in range(2):
        await monitor.labelled(
            monitor.outcomes(["a", "a", "none"], [9.0, 8.0, 7.0], outcome_ids=["1", "2", "3"], name="refund")
        )
    assert IngestCounts(2, 3, 0, 3) == (await monitor.asks.status())[0]
    assert 0 == (await monitor.asks.performance(monitor.version())).labelled


async def test_a_segment_is_counted_by_itself_and_within_the_whole(monitor: Any) -> None:
    ids, scores, labels = spread(40)
    segments = ["JFK"] * 10 + [""] * 10 + ["EWR"] * 20
    await monitor.labelled(monitor.outcomes(ids[:15], labels[:15]))
    await monitor.predicted(monitor.batch(ids, scores, segments=segments))
    await monitor.labelled(monitor.outcomes(ids[15:], labels[15:]))
    for segment, at in (("", slice(0, 40)), ("JFK", slice(0, 10)), ("EWR", slice(20, 40))):
        found = await monitor.asks.performance(monitor.version(), segment=segment)
        assert (len(ids[at]), len(ids[at])) == (found.predictions, found.labelled)
        assert scores[at].mean() == pytest.approx(found.score_mean, abs=1e-8)
        assert metrics.log_loss(labels[at], scores[at], labels=[0, 1]) == pytest.approx(found.log_loss)
    nobody = await monitor.asks.performance(monitor.version(), segment="LGA")
    assert (0, False) == (nobody.predictions, nobody.HasField("first_event"))


async def test_a_range_of_time_is_that_of_its_whole_minutes(monitor: Any) -> None:
    start = monitor.start_us
    times = [start + 1, start + MINUTE_US - 1, start + MINUTE_US, start + 3 * MINUTE_US]
    await monitor.predicted(monitor.batch(["a", "b", "c", "d"], times=times))

    async def found(begin: int | None, end: int | None) -> tuple[int, int, int]:
        answer = await monitor.asks.performance(monitor.version(), begin, end)
        return answer.predictions, answer.first_event.ToMicroseconds(), answer.last_event.ToMicroseconds()

    assert (4, times[0], times[3]) == await found(None, None)
    assert (2, times[0], times[1]) == await found(start, start + MINUTE_US)
    assert (3, times[0], times[2]) == await found(start + 30, start + MINUTE_US + 1)
    assert (2, times[2], times[3]) == await found(start + MINUTE_US, None)
    with pytest.raises(InvalidArgument) as wrong:
        await found(start + MINUTE_US, start)
    assert "INVALID_TIME_RANGE" == wrong.value.reason
    assert times[3] == (await monitor.asks.status())[1]


async def test_answers_that_no_model_gave_are_counted_and_have_no_quality(monitor: Any) -> None:
    sources = [1, 2, 3, 4, 1]
    scores = [0.25, 0.75, 0.5, np.nan, np.inf]
    await monitor.predicted(monitor.batch(list("abcde"), scores, sources=sources))
    await monitor.labelled(monitor.outcomes(list("abcde"), [0.0, 1.0, 0.0, 0.0, 1.0]))
    found = await monitor.asks.performance(monitor.version())
    assert (5, 2, 1.0) == (found.predictions, found.labelled, found.auc)
    assert (0.2, 0.4) == (found.error_rate, found.fallback_rate)
    assert 0.5 == pytest.approx(found.score_mean, abs=1e-9)


async def test_an_answer_of_a_shadow_is_another_answer_and_serves_nobody(monitor: Any) -> None:
    await monitor.predicted(monitor.batch(["a", "b"]))
    await monitor.predicted(monitor.batch(["a", "b"], version=2, release=2, role=SHADOW))
    assert IngestCounts(predictions=2) == (await monitor.asks.status())[0]
    assert 2 == (await monitor.asks.performance(monitor.version())).predictions
    assert 0 == (await monitor.asks.performance(monitor.version(2))).predictions


async def test_a_shadow_is_compared_with_the_champion_over_the_answers_that_both_gave(monitor: Any) -> None:
    ids, scores, labels = spread(100)
    challenger = np.clip(scores + np.random.default_rng(9).normal(0, 0.1, 100), 0.02, 0.98)
    times = [monitor.start_us + i * 1_000_000 for i in range(100)]
    rollout = f"{monitor.model}/rollouts/1"
    nothing = await monitor.asks.compare(shadow=True)
    assert (0, 0, np.inf) == (nothing.labelled, nothing.champion.predictions, nothing.log_loss_delta_upper)
    await monitor.labelled(monitor.outcomes(ids[:40], labels[:40]))
    shadow = {"version": 2, "release": 2, "role": SHADOW, "rollout": rollout}
    await monitor.predicted(monitor.batch(ids[:90], challenger[:90], times=times[:90], **shadow))
    await monitor.predicted(monitor.batch(ids, scores, times=times, rollout=rollout))
    await monitor.predicted(monitor.batch(["elsewhere"], [0.9], times=[times[0]]))
    await monitor.labelled(monitor.outcomes(ids[40:70], labels[40:70]))
    found = await monitor.asks.compare(shadow=True)
    difference = losses(challenger[:70], labels[:70]) - losses(scores[:70], labels[:70])
    low, high = stats.ttest_1samp(difference, 0).confidence_interval(0.90)
    assert (100, 90, 70) == (found.champion.predictions, found.challenger.predictions, found.labelled)
    assert difference.mean() == pytest.approx(found.log_loss_delta, abs=1e-9)
    assert (low, high) == pytest.approx((found.log_loss_delta_lower, found.log_loss_delta_upper), abs=1e-9)
    assert ((challenger >= 0.5) != (scores >= 0.5))[:90].mean() == pytest.approx(found.disagreement_rate)
    assert (times[0], times[99]) == (found.first_event.ToMicroseconds(), found.last_event.ToMicroseconds())
    since = await monitor.asks.compare(shadow=True, since_us=times[50])
    assert (50, 40, 20) == (since.champion.predictions, since.challenger.predictions, since.labelled)


async def test_a_canary_is_compared_by_what_each_variant_answered(monitor: Any) -> None:
    rollout = f"{monitor.model}/rollouts/1"
    ids, scores, labels = spread(60)
    sources = [4] * 5 + [1] * 15
    await monitor.predicted(monitor.batch(ids[:40], scores[:40], rollout=rollout))
    canary = monitor.batch(
        ids[40:], scores[40:], rollout=rollout, version=2, release=2, role=CHALLENGER, sources=sources,
        latencies=np.linspace(1, 20, 20),
    )  # fmt: skip
    await monitor.predicted(canary)
    await monitor.labelled(monitor.outcomes(ids, labels))
    found = await monitor.asks.compare(shadow=False)
    assert (40, 40) == (found.champion.predictions, found.champion.labelled)
    assert (20, 15, 0.25) == (
        found.challenger.predictions,
        found.challenger.labelled,
        found.challenger.error_rate,
    )
    assert 20.0 == found.challenger.latency_p99_ms
    a, b = losses(scores[45:], labels[45:]), losses(scores[:40], labels[:40])
    low, high = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.90)
    assert (low, high) == pytest.approx((found.log_loss_delta_lower, found.log_loss_delta_upper), abs=1e-9)
    assert not found.HasField("disagreement_rate")


async def test_nothing_counts_while_the_reference_of_a_new_version_cannot_be_had(monitor: Any) -> None:
    monitor.references.away = True
    with pytest.raises(Unavailable):
        await monitor.predicted(monitor.batch(["a"]))
    assert (IngestCounts(), None) == (await monitor.asks.status())[:2]
    with pytest.raises(NotFound) as absent:
        await monitor.asks.performance(monitor.version())
    assert "NO_PREDICTIONS" == absent.value.reason
    monitor.references.away = False
    await monitor.predicted(monitor.batch(["a"]))
    monitor.references.away = True
    await monitor.predicted(monitor.batch(["b"]))
    assert IngestCounts(predictions=2) == (await monitor.asks.status())[0]


async def test_what_a_version_is_compared_with_never_changes(monitor: Any) -> None:
    await monitor.predicted(monitor.batch(["a"]))
    first = await monitor.asks.report(monitor.version(), monitor.start_us, monitor.start_us + MINUTE_US)
    monitor.references.known.clear()
    await monitor.predicted(monitor.batch(["b"]))
    again = await monitor.asks.report(monitor.version(), monitor.start_us, monitor.start_us + MINUTE_US)
    assert (1, 2) == (first.predictions, again.predictions)
    assert first.reference_hash.startswith("sha256:") and first.reference_hash == again.reference_hash
    await monitor.predicted(monitor.batch(["c"], model="projects/p/models/other"))
    with pytest.raises(NotFound) as absent:
        await monitor.asks.report("projects/p/models/other/versions/1")
    assert "NO_REFERENCE" == absent.value.reason


async def test_a_transaction_that_is_undone_counts_nothing(monitor: Any) -> None:
    await monitor.predicted(monitor.batch(["a"], [0.25]))
    before = await monitor.asks.status(), await monitor.asks.performance(monitor.version())
    with pytest.raises(ZeroDivisionError):
        async with monitor.store.transaction() as records:
            await records.add_predictions(0, [monitor.batch(["b"], times=[monitor.start_us + HOUR_US])])
            await records.add_outcomes(0, [monitor.outcomes(["a", "b"], [1.0, 1.0])])
            raise ZeroDivisionError
    assert before == (await monitor.asks.status(), await monitor.asks.performance(monitor.version()))
    await monitor.predicted(monitor.batch(["b"]))
    await monitor.labelled(monitor.outcomes(["a", "b"], [1.0, 1.0]))
    assert IngestCounts(2, 2, 0, 0) == (await monitor.asks.status())[0]


async def test_partitions_are_counted_side_by_side(monitor: Any) -> None:
    async def one(partition: int) -> None:
        for k in range(5):
            ids = [f"{partition}-{k}-{i}" for i in range(10)]
            await monitor.predicted(monitor.batch(ids), partition=partition)
            await monitor.labelled(monitor.outcomes(ids, [1.0] * 10), partition=partition)

    await asyncio.gather(*(one(p) for p in range(4)))
    assert IngestCounts(200, 200, 0, 0) == (await monitor.asks.status())[0]
    found = await monitor.asks.performance(monitor.version())
    assert (200, 200) == (found.predictions, found.labelled)


async def test_answers_are_forgotten_after_their_time_and_what_they_counted_stays(monitor: Any) -> None:
    ids, scores, labels = spread(80)
    times = [monitor.start_us + i * HOUR_US for i in range(80)]
    rollout = f"{monitor.model}/rollouts/1"
    await monitor.predicted(monitor.batch(ids, scores, times=times, rollout=rollout))
    await monitor.labelled(monitor.outcomes(ids, labels, times=times))
    before = await monitor.asks.performance(monitor.version())

    async def prune() -> int:
        async with monitor.store.transaction() as records:
            return await records.prune(29 * HOUR_US)

    assert [50, 0] == [await prune(), await prune()]
    found = await monitor.asks.performance(monitor.version())
    assert (80, 80) == (found.predictions, found.labelled)
    assert before.log_loss == found.log_loss
    # By then the AUC is that of the histograms: bins of 1/200 hardly tie 80 scores.
    assert metrics.roc_auc_score(labels, scores) == pytest.approx(found.auc, abs=0.01)
    assert (times[50], times[79]) == (found.first_event.ToMicroseconds(), found.last_event.ToMicroseconds())
    assert 30 == (await monitor.asks.compare(shadow=True)).champion.predictions
    assert IngestCounts(80, 80, 0, 0) == (await monitor.asks.status())[0]


async def test_projects_are_counted_apart(monitor: Any) -> None:
    await monitor.predicted(monitor.batch(["a"]), monitor.batch(["b"], model="projects/q/models/late"))
    await monitor.labelled(monitor.outcomes(["x"], [1.0], model="projects/q/models/late"))
    assert (IngestCounts(1), IngestCounts(1, 1, 1)) == (
        (await monitor.asks.status("p"))[0],
        (await monitor.asks.status("q"))[0],
    )
    assert (IngestCounts(), None, 0) == await monitor.asks.status("r")
