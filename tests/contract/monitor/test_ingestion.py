"""Contract tests of ingestion: predictions and outcomes count once, in any order."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from sklearn import metrics

from flywheel_common.errors import InvalidArgument, NotFound
from flywheel_monitor.comparison.ports import VariantName
from flywheel_monitor.ingest.batches import IngestCounts, Role
from flywheel_monitor.ingest.waiting import count_waiting_once
from tests.support.builders.monitor import (
    HOUR_US,
    MINUTE_US,
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


async def test_the_first_of_equal_predictions_counts_others_are_duplicates(monitor: LocalMonitor) -> None:
    await monitor.predicted(predictions(["a", "b", "a"], [0.25, 0.75, 0.5]))
    await monitor.predicted(predictions(["b"], [0.125]), predictions(["b", "c"], [0.0625, 0.5]))
    counts, reached, _ = await monitor.status()
    assert IngestCounts(predictions=3, duplicates=3) == counts
    assert START_US == reached
    found = await monitor.performance()
    assert 3 == found.predictions
    assert (0.25 + 0.75 + 0.5) / 3 == pytest.approx(found.score_mean, abs=1e-9)


async def test_a_window_that_was_read_changes_with_later_rows(monitor: LocalMonitor) -> None:
    times = [START_US, START_US + 2 * HOUR_US]
    await monitor.predicted(predictions(["a", "b"], [0.25, 0.75], times=times))
    for number in range(3):
        found = await monitor.performance()
        assert (2 + number, number) == (found.predictions, found.quality.labelled)
        await monitor.predicted(predictions([f"late-{number}"], [0.5], times=times[:1]), partition=number % 2)
        await monitor.labelled(outcomes([f"late-{number}"], [1.0]), partition=number % 2)
    assert (0.25 + 0.75 + 3 * 0.5) / 5 == pytest.approx((await monitor.performance()).score_mean, abs=1e-9)


async def test_quality_equals_scikit_learn(monitor: LocalMonitor) -> None:
    ids, scores, labels = scored_labels(200)
    await monitor.predicted(predictions(ids, scores))
    await monitor.labelled(outcomes(ids[:150], labels[:150]))
    counts = await monitor.counts()
    assert IngestCounts(predictions=200, outcomes=150) == counts
    found = await monitor.performance()
    s, y = scores[:150], labels[:150]
    assert (200, 150) == (found.predictions, found.quality.labelled)
    assert metrics.roc_auc_score(y, s) == pytest.approx(found.quality.auc, abs=1e-12)
    assert metrics.log_loss(y, s) == pytest.approx(found.quality.log_loss, abs=1e-8)
    assert metrics.brier_score_loss(y, s) == pytest.approx(found.quality.brier, abs=1e-8)
    assert y.mean() == pytest.approx(found.quality.label_mean, abs=1e-9)
    assert scores.mean() == pytest.approx(found.score_mean, abs=1e-8)
    assert 3.0 <= found.latency_p50_ms <= 3.3


async def test_any_order_of_events_gives_the_same_window(monitor: LocalMonitor) -> None:
    ids, scores, labels = scored_labels(60)
    wrong = 1 - labels
    times = [START_US + i * 10_000_000 for i in range(60)]
    found = []
    for seed in range(4):
        model = f"projects/p{seed}/models/late"

        def prediction_part(at: slice, model: str = model) -> Any:
            mine = [f"{model} {i}" for i in ids[at]]
            return predictions(mine, scores[at], times=times[at], model=model)

        def outcome_part(at: slice, values: np.ndarray, later: int, model: str = model) -> Any:
            mine = [f"{model} {i}" for i in ids[at]]
            when = [t + later for t in times[at]]
            known = [f"{later} {i}" for i in mine]
            return outcomes(mine, values[at], times=when, outcome_ids=known, model=model)

        parts = [slice(0, 20), slice(20, 35), slice(35, 60)]
        work = [(monitor.predicted, prediction_part(p)) for p in parts]
        work += [(monitor.labelled, outcome_part(p, wrong, HOUR_US)) for p in parts[:2]]
        work += [(monitor.labelled, outcome_part(p, labels, 2 * HOUR_US)) for p in parts]
        work += work[::2]
        if seed:
            random.Random(seed).shuffle(work)
        for act, batch in work:
            await act(batch)
        performance = await monitor.performance(f"{model}/versions/1")
        assert metrics.roc_auc_score(labels, scores) == pytest.approx(performance.quality.auc, abs=1e-12)
        assert metrics.log_loss(labels, scores) == pytest.approx(performance.quality.log_loss, abs=1e-8)
        counts = await monitor.counts(f"p{seed}")
        assert (60, 60, 0) == (counts.predictions, counts.outcomes, counts.orphans)
        found.append((replace(performance, model_version=""), counts))
    assert [found[0]] * 4 == found


async def test_the_newest_label_wins_then_the_largest_outcome_id(
    monitor: LocalMonitor,
) -> None:
    await monitor.predicted(predictions(["a"], [0.25]))
    at = START_US

    async def positive(value: float, time: int, outcome: str) -> bool:
        label = outcomes(["a"], [value], times=[time], outcome_ids=[outcome])
        await monitor.labelled(label)
        found = await monitor.performance()
        assert (1, 1) == (found.predictions, found.quality.labelled)
        assert log_losses(np.array([0.25]), np.array([found.quality.label_mean])) == pytest.approx(
            found.quality.log_loss
        )
        return bool(found.quality.label_mean)

    assert await positive(1.0, at + 5, "m")
    assert await positive(0.0, at + 4, "z"), "an older label changes nothing"
    assert await positive(0.0, at + 5, "l"), "an equally new label with a smaller id changes nothing"
    assert not await positive(0.0, at + 5, "n")
    assert await positive(1.0, at + 6, "a")
    both = outcomes(["a", "a"], [0.0, 1.0], times=[at + 9, at + 8], outcome_ids=["x", "y"])
    await monitor.labelled(both)
    assert 0.0 == (await monitor.performance()).quality.label_mean
    counts = await monitor.counts()
    assert IngestCounts(predictions=1, outcomes=1, duplicates=6) == counts


async def test_a_label_without_prediction_is_an_orphan_until_it_arrives(monitor: LocalMonitor) -> None:
    await monitor.labelled(outcomes(["a", "b", "never"], [1.0, 0.0, 1.0]))
    counts, reached, _ = await monitor.status()
    assert (IngestCounts(outcomes=3, orphans=3), None) == (counts, reached)
    await monitor.predicted(predictions(["a"], role=SHADOW, release=2, version=2))
    assert 3 == (await monitor.counts()).orphans, "a shadow prediction does not end an orphan"
    await monitor.predicted(predictions(["b", "c", "a"], [0.25, 0.5, 0.75]))
    assert IngestCounts(3, 3, 1, 0) == await monitor.counts()
    found = await monitor.performance()
    assert (3, 2, 1.0) == (found.predictions, found.quality.labelled, found.quality.auc)


async def test_other_outcomes_count_once_per_id_and_are_no_labels(monitor: LocalMonitor) -> None:
    await monitor.predicted(predictions(["a", "b"]))
    for _ in range(2):
        await monitor.labelled(
            outcomes(["a", "a", "none"], [9.0, 8.0, 7.0], outcome_ids=["1", "2", "3"], name="refund")
        )
    assert IngestCounts(2, 3, 0, 3) == await monitor.counts()
    assert 0 == (await monitor.performance()).quality.labelled


async def test_a_segment_is_counted_by_itself_and_in_the_total(monitor: LocalMonitor) -> None:
    ids, scores, labels = scored_labels(40)
    segments = ["JFK"] * 10 + [""] * 10 + ["EWR"] * 20
    await monitor.labelled(outcomes(ids[:15], labels[:15]))
    await monitor.predicted(predictions(ids, scores, segments=segments))
    await monitor.labelled(outcomes(ids[15:], labels[15:]))
    for segment, at in (("", slice(0, 40)), ("JFK", slice(0, 10)), ("EWR", slice(20, 40))):
        found = await monitor.performance(version_name(), segment=segment)
        assert (len(ids[at]), len(ids[at])) == (found.predictions, found.quality.labelled)
        assert scores[at].mean() == pytest.approx(found.score_mean, abs=1e-8)
        assert metrics.log_loss(labels[at], scores[at], labels=[0, 1]) == pytest.approx(
            found.quality.log_loss
        )
    empty = await monitor.performance(segment="LGA")
    assert (0, None) == (empty.predictions, empty.first_event_us)


async def test_a_time_range_is_widened_to_whole_panes(monitor: LocalMonitor) -> None:
    start = START_US
    times = [start + 1, start + MINUTE_US - 1, start + MINUTE_US, start + 3 * MINUTE_US]
    await monitor.predicted(predictions(["a", "b", "c", "d"], times=times))

    async def found(begin: int | None, end: int | None) -> tuple[int, int | None, int | None]:
        performance = await monitor.performance(start_us=begin, end_us=end)
        return performance.predictions, performance.first_event_us, performance.last_event_us

    assert (4, times[0], times[3]) == await found(None, None)
    assert (2, times[0], times[1]) == await found(start, start + MINUTE_US)
    assert (3, times[0], times[2]) == await found(start + 30, start + MINUTE_US + 1)
    assert (2, times[2], times[3]) == await found(start + MINUTE_US, None)
    with pytest.raises(InvalidArgument) as wrong:
        await found(start + MINUTE_US, start)
    assert "INVALID_TIME_RANGE" == wrong.value.reason
    assert times[1] == (await monitor.status())[1], "the third newest"


async def test_fallbacks_and_errors_count_but_have_no_quality(monitor: LocalMonitor) -> None:
    sources = [1, 2, 3, 4, 1]
    scores = [0.25, 0.75, 0.5, np.nan, np.inf]
    await monitor.predicted(predictions(list("abcde"), scores, sources=sources))
    await monitor.labelled(outcomes(list("abcde"), [0.0, 1.0, 0.0, 0.0, 1.0]))
    found = await monitor.performance()
    assert (5, 2, 1.0) == (found.predictions, found.quality.labelled, found.quality.auc)
    assert (0.2, 0.4) == (found.error_rate, found.fallback_rate)
    assert 0.5 == pytest.approx(found.score_mean, abs=1e-9)


async def test_a_shadow_prediction_is_separate_and_not_served(monitor: LocalMonitor) -> None:
    await monitor.predicted(predictions(["a", "b"]))
    await monitor.predicted(predictions(["a", "b"], version=2, release=2, role=SHADOW))
    assert IngestCounts(predictions=2) == await monitor.counts()
    assert 2 == (await monitor.performance()).predictions
    assert 0 == (await monitor.performance(version_name(2))).predictions


async def test_predictions_wait_for_their_reference_and_delay_no_other_version(monitor: LocalMonitor) -> None:
    await monitor.predicted(predictions(["a"]))
    monitor.references.down = True
    ids, scores, labels = scored_labels(30)
    new = predictions(ids[:20], scores[:20], version=2)
    await monitor.predicted(new, predictions(["b"]), partition=1)
    await monitor.predicted(predictions(ids[10:], scores[10:], version=2), partition=1)
    await monitor.labelled(outcomes(ids, labels), partition=1)
    assert IngestCounts(predictions=2, outcomes=30, orphans=30) == await monitor.counts()
    assert 40 == await waiting(monitor)
    with pytest.raises(NotFound) as absent:
        await monitor.performance(version_name(2))
    assert "NO_PREDICTIONS" == absent.value.reason
    assert 0 == await count_waiting_once(monitor.store)
    other = predictions(["x"], kind=3, version=2)
    async with monitor.store.reading() as records:
        assert not (await records.outputs(MODEL))[version_name(2)].same(other.output), "its output is fixed"
    monitor.references.down = False
    assert 2 == await count_waiting_once(monitor.store)
    assert (0, 0) == (await count_waiting_once(monitor.store), await waiting(monitor))
    assert IngestCounts(32, 30, 0, 10) == await monitor.counts()
    found = await monitor.performance(version_name(2))
    assert (30, 30) == (found.predictions, found.quality.labelled)
    assert metrics.log_loss(labels, scores) == pytest.approx(found.quality.log_loss, abs=1e-8)
    report = await monitor.report(version_name(2), START_US, START_US + MINUTE_US)
    assert report.reference_hash.startswith("sha256:"), "it has its reference"


async def waiting(monitor: LocalMonitor) -> int:
    async with monitor.store.reading() as records:
        return await records.waiting_rows("p")


async def test_the_reference_of_a_version_never_changes(monitor: LocalMonitor) -> None:
    await monitor.predicted(predictions(["a"]))
    first = await monitor.report(version_name(), START_US, START_US + MINUTE_US)
    monitor.references.known.clear()
    await monitor.predicted(predictions(["b"]))
    again = await monitor.report(version_name(), START_US, START_US + MINUTE_US)
    assert (1, 2) == (first.predictions, again.predictions)
    assert first.reference_hash.startswith("sha256:") and first.reference_hash == again.reference_hash
    await monitor.predicted(predictions(["c"], model="projects/p/models/other"))
    with pytest.raises(NotFound) as absent:
        await monitor.report("projects/p/models/other/versions/1")
    assert "NO_REFERENCE" == absent.value.reason


async def test_a_rolled_back_transaction_counts_nothing(monitor: LocalMonitor) -> None:
    await monitor.predicted(predictions(["a"], [0.25]))
    before = await monitor.status(), await monitor.performance()
    with pytest.raises(ZeroDivisionError):
        async with monitor.store.transaction() as records:
            await records.add_predictions(0, [predictions(["b"], times=[START_US + HOUR_US])])
            await records.add_outcomes(0, [outcomes(["a", "b"], [1.0, 1.0])])
            raise ZeroDivisionError
    assert before == (await monitor.status(), await monitor.performance())
    await monitor.predicted(predictions(["b"]))
    await monitor.labelled(outcomes(["a", "b"], [1.0, 1.0]))
    assert IngestCounts(2, 2, 0, 0) == await monitor.counts()


async def test_partitions_are_counted_concurrently(monitor: LocalMonitor) -> None:
    async def ingest(partition: int) -> None:
        for k in range(5):
            ids = [f"{partition}-{k}-{i}" for i in range(10)]
            await monitor.predicted(predictions(ids), partition=partition)
            await monitor.labelled(outcomes(ids, [1.0] * 10), partition=partition)

    await asyncio.gather(*(ingest(p) for p in range(4)))
    assert IngestCounts(200, 200, 0, 0) == await monitor.counts()
    found = await monitor.performance()
    assert (200, 200) == (found.predictions, found.quality.labelled)


async def test_pruned_predictions_stay_counted(monitor: LocalMonitor) -> None:
    ids, scores, labels = scored_labels(80)
    times = [START_US + i * HOUR_US for i in range(80)]
    old, new = slice(0, 80, 2), slice(1, 80, 2)
    rollout = f"{MODEL}/rollouts/1"
    await monitor.predicted(predictions(ids[old], scores[old], times=times[old], rollout=rollout))
    await monitor.labelled(outcomes(ids, labels, times=times))
    between = datetime.now(UTC)
    await monitor.predicted(predictions(ids[new], scores[new], times=times[new], rollout=rollout))
    before = await monitor.performance()

    async def prune() -> int:
        async with monitor.store.transaction() as records:
            return await records.prune(between)

    assert [40, 0] == [await prune(), await prune()], (
        "those that arrived before, whatever their event time is"
    )
    found = await monitor.performance()
    assert (80, 80) == (found.predictions, found.quality.labelled)
    assert before.quality.log_loss == found.quality.log_loss
    # The AUC now comes from the histograms: bins of 1/200 hardly tie 80 scores.
    assert metrics.roc_auc_score(labels, scores) == pytest.approx(found.quality.auc, abs=0.01)
    assert (times[0], times[79]) == (found.first_event_us, found.last_event_us)
    assert 80 == (await monitor.compare(shadow=True)).comparison.champion.predictions
    assert IngestCounts(80, 80, 0, 0) == await monitor.counts()


async def test_models_that_share_ids_keep_their_rows_and_labels(monitor: LocalMonitor) -> None:
    ids, scores, labels = scored_labels(50)
    other, foreign = "projects/p/models/other", "projects/q/models/late"
    await monitor.labelled(outcomes(ids[:10], 1 - labels[:10], model=other))
    await monitor.predicted(predictions(ids, scores), predictions(ids, 1 - scores, model=other))
    await monitor.labelled(outcomes(ids, labels))
    late = [START_US + 9 * HOUR_US] * 50
    await monitor.labelled(outcomes(ids, 1 - labels, times=late, model=foreign, outcome_ids=ids))
    await monitor.labelled(outcomes(ids[10:], 1 - labels[10:], model=other))
    await monitor.labelled(outcomes(ids[:5], [9.0] * 5, name="refund", outcome_ids=list("abcde")))
    await monitor.labelled(
        outcomes(ids[:5], [9.0] * 5, name="refund", outcome_ids=list("abcde"), model=other)
    )
    assert IngestCounts(predictions=100, outcomes=110) == await monitor.counts()
    assert IngestCounts(outcomes=50, orphans=50) == await monitor.counts("q")
    mine = await monitor.performance()
    assert metrics.log_loss(labels, scores) == pytest.approx(mine.quality.log_loss, abs=1e-8)
    theirs = await monitor.performance(f"{other}/versions/1")
    assert (50, 50) == (theirs.predictions, theirs.quality.labelled)
    assert metrics.log_loss(1 - labels, 1 - scores) == pytest.approx(theirs.quality.log_loss, abs=1e-8)
    assert labels.mean() + theirs.quality.label_mean == pytest.approx(1.0)


async def test_each_shadow_of_a_request_counts(monitor: LocalMonitor) -> None:
    rollout = f"{MODEL}/rollouts/1"
    for release in (2, 3):
        shadow = predictions(["a", "b"], version=release, release=release, role=SHADOW, rollout=rollout)
        await monitor.predicted(shadow, shadow)
    await monitor.predicted(predictions(["a", "b"], rollout=rollout))
    await monitor.labelled(outcomes(["a", "b"], [0.0, 1.0]))
    assert IngestCounts(predictions=2, outcomes=2, duplicates=4) == await monitor.counts()
    for release in (2, 3):
        async with monitor.store.reading() as records:
            names = f"{MODEL}/releases/{release}"
            (found,) = await records.variant_windows([VariantName(rollout, names, Role.SHADOW)], 0)
        assert (2, 2) == (found.predictions, found.labelled)


async def test_projects_are_counted_separately(monitor: LocalMonitor) -> None:
    await monitor.predicted(predictions(["a"]), predictions(["b"], model="projects/q/models/late"))
    await monitor.labelled(outcomes(["x"], [1.0], model="projects/q/models/late"))
    assert (IngestCounts(1), IngestCounts(1, 1, 1)) == (
        (await monitor.status("p"))[0],
        (await monitor.status("q"))[0],
    )
    assert (IngestCounts(), None, 0) == await monitor.status("r")
