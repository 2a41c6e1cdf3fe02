"""The evaluator over a store in memory: which windows it judges, when, and what follows."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from scipy import stats

from flywheel_common.clock import ManualClock
from flywheel_common.ids import SequentialIds
from flywheel_monitor.alerts.filter import AlertFilter
from flywheel_monitor.alerts.lifecycle import AlertState, Kind
from flywheel_monitor.drift.verdict import Verdict
from flywheel_monitor.evaluation.evaluator import Evaluator
from flywheel_monitor.evaluation.metrics import EvaluationMetrics
from flywheel_monitor.fakes.references import MemoryReferences
from flywheel_monitor.fakes.store import MemoryStore
from flywheel_monitor.models.feature_rule import FeatureRule
from flywheel_monitor.models.policy import HOUR_US, MonitorPolicy
from flywheel_monitor.references.reference import Reference
from flywheel_monitor.windows.bins import ColumnReference
from flywheel_monitor.windows.watermark import UnreadPartitions
from tests.support.builders.monitor import MODEL, PANE_US, outcomes, predictions, version_name
from tests.support.eventually import eventually

VERSION = version_name()
POLICY = MonitorPolicy(
    window_us=HOUR_US, lateness_us=2 * HOUR_US, min_predictions=100, min_labels=100, k_of=2, m_windows=3
)
EDGES = (-1.2, -0.5, 0.0, 0.5, 1.2)
COUNTS = (1151, 1934, 1915, 1915, 1934, 1151)
"""Of a standard normal distribution between these edges."""


class Traffic:
    """Hours of traffic of one version, and the evaluator that judges them."""

    def __init__(self) -> None:
        references = MemoryReferences()
        column = ColumnReference("v__x", True, COUNTS, edges=EDGES, stddev=1.0, minimum=-4.0, maximum=4.0)
        references.known = {VERSION: Reference((column,), {"auc": 0.9, "label_mean": 0.5})}
        self.store = MemoryStore(references, PANE_US, ManualClock())
        self.policy = POLICY
        self.unread = UnreadPartitions()
        self.during_read: Callable[[], Awaitable[None]] | None = None
        """Runs while the lag is read."""
        self.evaluator = Evaluator(
            self.store,
            EvaluationMetrics(CollectorRegistry()),
            SequentialIds("alert"),
            unread=self._unread,
            delay_us=0,
            poll_seconds=1.0,
        )

    async def _unread(self) -> UnreadPartitions:
        found = self.unread
        if self.during_read is not None:
            await self.during_read()
        return found

    async def hour(self, number: int, shift: float = 0.0, n: int = 200, *, labelled: bool = False) -> None:
        """n predictions in this hour with their feature shifted; the labels do not depend on the scores."""
        rng = np.random.default_rng(number)
        ids = [f"{number}-{i}" for i in range(n)]
        times = number * HOUR_US + np.arange(n) * (HOUR_US // n)
        values = stats.norm.ppf((np.arange(n) + 0.5) / n) + shift
        batch = predictions(ids, rng.uniform(0.05, 0.95, n), times=times, values=values)
        async with self.store.transaction() as records:
            await records.set_policy(MODEL, self.policy)
            await records.add_predictions(0, [batch])
            if labelled:
                labels = rng.integers(0, 2, n).astype(float)
                await records.add_outcomes(0, [outcomes(ids, labels, times=times)])

    async def stray(self, time_us: int) -> None:
        """One prediction with a wrong time."""
        async with self.store.transaction() as records:
            await records.add_predictions(0, [predictions(["stray"], times=[time_us])])

    async def verdicts(self) -> dict[tuple[int, Kind], Verdict]:
        """(hour, kind) → verdict, of hours with enough predictions."""
        async with self.store.reading() as records:
            version = await records.version(VERSION)
            assert version is not None
            kinds = (Kind.DATA_DRIFT, Kind.PREDICTION_DRIFT, Kind.DATA_QUALITY)
            return {
                (v.span.start_us // HOUR_US, kind): v.verdict
                for kind in kinds
                for v in await records.recent(version.id, kind, 99)
            }

    async def alerts(self) -> list[tuple[Kind, AlertState, int]]:
        """(kind, state, hour of the newest window that confirmed it), newest first."""
        async with self.store.reading() as records:
            page = await records.alerts("p", AlertFilter(), 99, "")
        return [(a.kind, a.state, a.last_window_end_us // HOUR_US - 1) for a in page.items]


@pytest.fixture
def traffic() -> Traffic:
    return Traffic()


async def test_a_window_is_judged_once_when_the_next_one_has_begun(traffic: Traffic) -> None:
    await traffic.hour(10)
    assert 0 == await traffic.evaluator.pass_once()
    await traffic.hour(11)
    assert [1, 0] == [await traffic.evaluator.pass_once(), await traffic.evaluator.pass_once()]
    async with traffic.store.reading() as records:
        version = await records.version(VERSION)
        assert version is not None and version.first_window is not None
        assert 200 == version.first_window.count
        report = await records.newest_report(version.id)
    assert report is not None and (10 * HOUR_US, 200) == (report.span.start_us, report.predictions)


async def test_two_drifted_windows_open_an_alert_three_clean_ones_end_it(traffic: Traffic) -> None:
    seen = []
    for number, shift in enumerate((0.0, 1.5, 1.5, 1.5, 0.0, 0.0, 0.0, 0.0), start=10):
        await traffic.hour(number, shift)
        await traffic.evaluator.pass_once()
        drift = [(state, last) for kind, state, last in await traffic.alerts() if kind == Kind.DATA_DRIFT]
        seen.append(drift)
    resolved, opened = AlertState.RESOLVED, AlertState.OPEN
    # A pass judges the windows before the newest hour: 12 is the second that drifts, 16 the third clean one.
    assert [
        [],
        [],
        [],
        [(opened, 12)],
        [(opened, 13)],
        [(opened, 13)],
        [(opened, 13)],
        [(resolved, 13)],
    ] == seen
    announced = traffic.store.announced
    assert [12, 13] == [a.span.start_us // HOUR_US for a in announced]
    assert 1 == len({a.alert for a in announced})
    assert not any(a.data_quality_cause for a in announced)


async def test_a_silenced_feature_opens_no_alert_until_its_event_time(traffic: Traffic) -> None:
    rule = FeatureRule("v__x", silenced_until_us=13 * HOUR_US)
    traffic.policy = replace(POLICY, feature_rules=(rule,))
    seen = []
    for number in range(10, 17):
        await traffic.hour(number, 1.5)
        await traffic.evaluator.pass_once()
        seen.append([last for kind, _, last in await traffic.alerts() if kind == Kind.DATA_DRIFT])
    # 13 and 14 are the first two windows that count; a pass judges the windows before the newest hour.
    assert [[], [], [], [], [], [14], [15]] == seen


async def test_an_alert_ends_after_its_feature_is_silenced(traffic: Traffic) -> None:
    for number in range(10, 13):
        await traffic.hour(number, 1.5)
        await traffic.evaluator.pass_once()
    traffic.policy = replace(POLICY, feature_rules=(FeatureRule("v__x", silenced=True),))
    for number in range(13, 16):
        await traffic.hour(number, 1.5)
        await traffic.evaluator.pass_once()
    assert [(Kind.DATA_DRIFT, AlertState.RESOLVED, 11)] == await traffic.alerts()


async def test_a_weekly_pattern_opens_no_alert_with_a_second_reference(traffic: Traffic) -> None:
    traffic.policy = replace(POLICY, seasonal_weeks=1)
    for number in (10, 11, 12):
        await traffic.hour(number, 1.5)
    for number, shift in ((178, 1.5), (179, 1.5), (180, 0.0), (181, 0.0)):
        await traffic.hour(number, shift)
    await traffic.evaluator.pass_once()
    drift, none = Verdict.DRIFT, Verdict.NO_DRIFT
    # 178 is one week after 10. There is no window a week before 10.
    expected = {10: drift, 11: drift, 12: drift, 178: none, 179: none, 180: none}
    assert expected == {
        h: v for (h, kind), v in (await traffic.verdicts()).items() if kind == Kind.DATA_DRIFT
    }


async def test_labels_are_judged_after_their_lateness_and_all_read(traffic: Traffic) -> None:
    for number in range(10, 16):
        await traffic.hour(number, labelled=True)
        traffic.unread = UnreadPartitions(outcomes=frozenset({3}))
        await traffic.evaluator.pass_once()
    assert Kind.CONCEPT_DRIFT not in {kind for kind, _, _ in await traffic.alerts()}
    traffic.unread = UnreadPartitions()
    await traffic.hour(16)
    await traffic.evaluator.pass_once()
    concept = [(state, last) for kind, state, last in await traffic.alerts() if kind == Kind.CONCEPT_DRIFT]
    # The lateness of labels is two hours: 13 is the newest window that it has passed.
    assert [(AlertState.OPEN, 13)] == concept


async def test_nothing_is_judged_while_an_unread_partition_has_no_event(traffic: Traffic) -> None:
    traffic.unread = UnreadPartitions(predictions=frozenset({2}))
    for number in (10, 11, 12):
        await traffic.hour(number)
    assert 0 == await traffic.evaluator.pass_once()
    traffic.unread = UnreadPartitions()
    assert 2 == await traffic.evaluator.pass_once()


async def test_a_prediction_counted_during_the_lag_read_closes_no_window(traffic: Traffic) -> None:
    """The lag was 0; then an hour arrived in two partitions, one of which was read at once."""
    await traffic.hour(10)
    traffic.during_read = lambda: traffic.hour(11)
    assert 0 == await traffic.evaluator.pass_once()
    traffic.during_read = None
    assert 1 == await traffic.evaluator.pass_once()


@pytest.mark.parametrize(("before", "needed"), [(5, 3), (16, 6), (200, 8)])
async def test_a_quiet_model_waits_for_a_few_events_only(traffic: Traffic, before: int, needed: int) -> None:
    """A quarter of the last 32 events, and at least three, must lie behind the end of the window."""
    await traffic.hour(10, n=before)
    judged = []
    for number in range(needed):
        batch = predictions([f"later-{number}"], times=[11 * HOUR_US + number])
        async with traffic.store.transaction() as records:
            await records.add_predictions(0, [batch])
        judged.append(await traffic.evaluator.pass_once())
    assert [0] * (needed - 1) + [1] == judged


SHIFTS = (0.0, 1.5, 1.5, 0.0, 0.0, 0.0)
FIRST_HOUR = 380_000  # 2013
LAST_HOUR = 500_000  # 2027


async def replayed(stray: tuple[int, int] | None) -> list[object]:
    """Verdicts and alerts after each of six hours of 2013, with one wrong time (before which hour, in
    microseconds) or without."""
    traffic, seen = Traffic(), list[object]()
    for place, shift in enumerate(SHIFTS):
        if stray is not None and stray[0] == place:
            await traffic.stray(stray[1])
        await traffic.hour(FIRST_HOUR + place, shift)
        await traffic.evaluator.pass_once()
        seen.append((await traffic.verdicts(), await traffic.alerts()))
    return seen


@pytest.fixture(scope="module")
def undisturbed() -> list[object]:
    """What is found without a wrong time."""
    return asyncio.run(replayed(None))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, len(SHIFTS) - 1), st.integers(1, LAST_HOUR * HOUR_US))
@example(1, LAST_HOUR * HOUR_US)
@example(0, 1)
@example(3, (FIRST_HOUR + 3) * HOUR_US)
async def test_one_wrong_time_changes_no_verdict_and_no_alert(
    undisturbed: list[object], place: int, time_us: int
) -> None:
    assert undisturbed == await replayed((place, time_us))


async def test_late_events_correct_their_window_and_retract_the_alert(traffic: Traffic) -> None:
    for number in range(10, 14):
        await traffic.hour(number, shift=3.0 if number >= 11 else 0.0)
    await traffic.evaluator.pass_once()
    assert (Kind.DATA_DRIFT, AlertState.OPEN, 12) in await traffic.alerts()
    # The rest of hour 12: most of its values are as usual.
    rng = np.random.default_rng(0)
    late = predictions(
        [f"late-{i}" for i in range(20_000)],
        rng.uniform(0.05, 0.95, 20_000),
        times=12 * HOUR_US + np.arange(20_000),
        values=rng.normal(size=20_000),
    )
    async with traffic.store.transaction() as records:
        await records.add_predictions(1, [late])
    assert 1 == await traffic.evaluator.pass_once()
    assert Verdict.NO_DRIFT == (await traffic.verdicts())[12, Kind.DATA_DRIFT]
    assert (Kind.DATA_DRIFT, AlertState.RESOLVED, 12) in await traffic.alerts()
    assert 0 == await traffic.evaluator.pass_once(), "once is enough"
    async with traffic.store.reading() as records:
        version = await records.version(VERSION)
        report = await records.newest_report(version.id)
        assert 0 == (await records.counts("p")).late, "they came before the last judgement of their window"
    assert 20_000 == report.late_predictions
    assert "20000 of 20200 predictions came late" in report.reason


async def test_a_replay_of_the_past_beside_live_traffic_is_judged_and_counted(traffic: Traffic) -> None:
    for number in range(1000, 1010):
        await traffic.hour(number)
    await traffic.evaluator.pass_once()
    for number in range(10, 14):
        await traffic.hour(number, shift=3.0)
    await traffic.evaluator.pass_once()
    found = await traffic.verdicts()
    assert [Verdict.DRIFT] * 4 == [found[n, Kind.DATA_DRIFT] for n in range(10, 14)]
    assert [] == await traffic.alerts(), "windows older than those that decide open none"
    async with traffic.store.reading() as records:
        assert 800 == (await records.counts("p")).late
    await traffic.hour(11, shift=-3.0, n=300)
    assert 0 == await traffic.evaluator.pass_once(), "a judged window is not judged again after its lateness"
    async with traffic.store.reading() as records:
        assert 900 == (await records.counts("p")).late, "200 of the ids were repeats"


async def test_predictions_that_come_while_windows_are_closed_are_not_passed(traffic: Traffic) -> None:
    await traffic.hour(10)
    await traffic.hour(11)
    await traffic.hour(12)
    judge = traffic.evaluator._judge

    async def judge_while_rows_arrive(*args: object, **labels: bool) -> None:
        await judge(*args, **labels)  # type: ignore[arg-type]
        traffic.evaluator._judge = judge  # type: ignore[method-assign]
        await traffic.hour(9)

    traffic.evaluator._judge = judge_while_rows_arrive  # type: ignore[method-assign, assignment]
    await traffic.evaluator.pass_once()
    await traffic.evaluator.pass_once()
    assert {9, 10, 11} <= {hour for hour, _ in await traffic.verdicts()}


async def test_gauges_show_the_newest_window_and_end_with_the_lease(traffic: Traffic) -> None:
    registry = CollectorRegistry()
    traffic.evaluator._metrics = EvaluationMetrics(registry)

    def shift() -> float | None:
        return registry.get_sample_value(
            "flywheel_feature_psi", {"model_version": VERSION, "feature": "v__x"}
        )

    for number in range(10, 13):
        await traffic.hour(number, shift=3.0 if number == 10 else 0.0)
    await traffic.evaluator.pass_once()
    newest = shift()
    assert newest is not None and newest < 0.1
    async with traffic.store.transaction() as records:
        late = predictions([f"l{i}" for i in range(50)], times=[10 * HOUR_US] * 50, values=[3.0] * 50)
        await records.add_predictions(0, [late])
    assert 1 == await traffic.evaluator.pass_once()
    assert newest == shift(), "the window that was judged again is older"
    traffic.evaluator._metrics = EvaluationMetrics(registry := CollectorRegistry())
    next_leader = asyncio.create_task(traffic.evaluator.run())
    await eventually(lambda: shift() == newest)
    next_leader.cancel()
    await asyncio.gather(next_leader, return_exceptions=True)
    assert shift() is None, "an ex-leader exports no gauge"


async def test_gauges_show_the_quality_and_age_of_the_labels(traffic: Traffic) -> None:
    registry = CollectorRegistry()
    traffic.evaluator._metrics = EvaluationMetrics(registry)

    def delay(quantile: str) -> float | None:
        labels = {"model_version": VERSION, "quantile": quantile}
        return registry.get_sample_value("flywheel_label_delay_seconds", labels)

    await traffic.hour(10)
    ids, times = [f"10-{i}" for i in range(200)], 10 * HOUR_US + np.arange(200) * (HOUR_US // 200)
    after = np.where(np.arange(200) < 150, 100, 1000) * 1_000_000
    async with traffic.store.transaction() as records:
        await records.add_outcomes(0, [outcomes(ids, np.arange(200) % 2, times=times + after)])
    for number in range(11, 16):
        await traffic.hour(number)
    await traffic.evaluator.pass_once()
    assert delay("0.5") == pytest.approx(105, abs=5)
    assert delay("0.9") == pytest.approx(1050, abs=50)

    def quality(metric: str) -> float | None:
        labels = {"model_version": VERSION, "metric": metric}
        return registry.get_sample_value("flywheel_window_quality", labels)

    scores = np.random.default_rng(10).uniform(0.05, 0.95, 200)
    assert quality("brier") == pytest.approx(((scores - np.arange(200) % 2) ** 2).mean(), abs=1e-8)
    assert (1.0, 200.0, None) == (quality("coverage"), quality("labelled"), quality("rmse"))
    feature = {"model_version": VERSION, "feature": "v__x"}
    assert registry.get_sample_value("flywheel_feature_missing_rate", feature) == 0
    assert registry.get_sample_value("flywheel_window_predictions", {"model_version": VERSION}) == 200
    traffic.evaluator._metrics.stop()
    assert delay("0.5") is None


async def test_gauges_show_the_estimate_and_how_wrong_it_was(traffic: Traffic) -> None:
    registry = CollectorRegistry()
    traffic.evaluator._metrics = EvaluationMetrics(registry)

    def gauge(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(
            f"flywheel_estimated_performance{name}", {"model_version": VERSION, **labels}
        )

    await traffic.hour(10)
    await traffic.hour(11)
    await traffic.evaluator.pass_once()
    scores = np.random.default_rng(10).uniform(0.05, 0.95, 200)
    promised = float(np.maximum(scores, 1 - scores).mean())
    assert promised == pytest.approx(gauge("", metric="accuracy"), abs=1 / 400)
    assert gauge("_wrong") is None, "no labels yet"
    for number in range(11, 16):
        await traffic.hour(number, labelled=True, n=400)
    await traffic.evaluator.pass_once()
    rng = np.random.default_rng(12)
    scores, labels = rng.uniform(0.05, 0.95, 400), rng.integers(0, 2, 400)
    right = float(((scores >= 0.5) == (labels == 1)).mean())
    error = right - float(np.maximum(scores, 1 - scores).mean())
    assert error == pytest.approx(gauge("_error", metric="accuracy"), abs=1 / 400)
    loss = -np.where(labels == 1, np.log(scores), np.log(1 - scores)).mean()
    entropy = -(scores * np.log(scores) + (1 - scores) * np.log(1 - scores)).mean()
    assert loss - entropy == pytest.approx(gauge("_error", metric="log_loss"), abs=0.02)
    assert 1.0 == gauge("_wrong"), "labels that do not depend on the scores are worse than promised"
    traffic.evaluator._metrics.stop()
    assert gauge("", metric="accuracy") is None and gauge("_wrong") is None
