"""The watch over a store in memory: which windows it judges, when, and what follows."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from scipy import stats

from flywheel_common.clock import ManualClock
from flywheel_common.ids import SequentialIds
from flywheel_monitor.alert import AlertFilter
from flywheel_monitor.alerts import AlertState, Kind
from flywheel_monitor.batches import OutcomeColumns, PredictionColumns, Role, VariantKey
from flywheel_monitor.bins import ColumnReference
from flywheel_monitor.gauges import Gauges
from flywheel_monitor.memory import MemoryReferences, MemoryStore
from flywheel_monitor.policy import HOUR_US, MonitorPolicy
from flywheel_monitor.references import Reference
from flywheel_monitor.watch import Watch
from flywheel_monitor.windows import Behind

MODEL = "projects/p/models/late"
VERSION = f"{MODEL}/versions/1"
KEY = VariantKey(MODEL, VERSION, f"{MODEL}/releases/1", "", Role.CHAMPION)
POLICY = MonitorPolicy(
    window_us=HOUR_US, lateness_us=2 * HOUR_US, min_predictions=100, min_labels=100, k_of=2, m_windows=3
)
EDGES = (-1.2, -0.5, 0.0, 0.5, 1.2)
"""Of a standard normal, cut at these."""
COUNTS = (1151, 1934, 1915, 1915, 1934, 1151)


class World:
    """Hours of traffic, and a watch that follows."""

    def __init__(self) -> None:
        references = MemoryReferences()
        column = ColumnReference("v__x", True, COUNTS, edges=EDGES, stddev=1.0, minimum=-4.0, maximum=4.0)
        references.known = {VERSION: Reference((column,), {"auc": 0.9, "label_mean": 0.5})}
        self.store = MemoryStore(references, 60_000_000, ManualClock())
        self.behind = Behind()
        self.meanwhile: Callable[[], Awaitable[None]] | None = None
        """What happens while the broker is asked."""
        self.watch = Watch(
            self.store, Gauges(CollectorRegistry()), SequentialIds("alert"), behind=self._behind, delay_us=0, poll_seconds=1.0
        )  # fmt: skip

    async def _behind(self) -> Behind:
        found = self.behind
        if self.meanwhile is not None:
            await self.meanwhile()
        return found

    async def hour(self, number: int, shift: float = 0.0, n: int = 200, *, labelled: bool = False) -> None:
        """n answers spread over an hour, their feature shifted; labels say nothing of the scores."""
        rng = np.random.default_rng(number)
        ids = [f"{number}-{i}" for i in range(n)]
        times = number * HOUR_US + np.arange(n) * (HOUR_US // n)
        values = (stats.norm.ppf((np.arange(n) + 0.5) / n) + shift, np.ones(n, np.bool_))
        batch = PredictionColumns(
            KEY, ids, times, rng.uniform(0.05, 0.95, n), np.ones(n, np.bool_), np.ones(n, np.int64), np.full(n, 3.0),
            np.zeros(n, np.bool_), ("",) * n, {"v__x": values}, b"",
        )  # fmt: skip
        async with self.store.transaction() as records:
            await records.set_policy(MODEL, POLICY)
            await records.add_predictions(0, [batch])
            if labelled:
                labels = OutcomeColumns(MODEL, "label", ids, ids, times, rng.integers(0, 2, n).astype(float))
                await records.add_outcomes(0, [labels])

    async def alerts(self) -> list[tuple[Kind, AlertState, int]]:
        """(kind, state, hour of the newest window that confirmed it), newest first."""
        async with self.store.reading() as records:
            page = await records.alerts("p", AlertFilter(), 99, "")
        return [(a.kind, a.state, a.last_window_end_us // HOUR_US - 1) for a in page.items]


@pytest.fixture
def world() -> World:
    return World()


async def test_a_window_is_judged_once_when_the_next_one_has_begun(world: World) -> None:
    await world.hour(10)
    assert 0 == await world.watch.pass_once()
    await world.hour(11)
    assert [1, 0] == [await world.watch.pass_once(), await world.watch.pass_once()]
    async with world.store.reading() as records:
        version = await records.version(VERSION)
        assert version is not None and version.first_window is not None
        assert 200 == version.first_window.count
        report = await records.newest_report(version.id)
    assert report is not None and (10 * HOUR_US, 200) == (report.span.start_us, report.predictions)


async def test_drift_of_two_windows_opens_an_alert_goes_out_and_ends_after_three_clean_ones(
    world: World,
) -> None:
    seen = []
    for number, shift in enumerate((0.0, 1.5, 1.5, 1.5, 0.0, 0.0, 0.0, 0.0), start=10):
        await world.hour(number, shift)
        await world.watch.pass_once()
        drift = [
            (state, confirmed) for kind, state, confirmed in await world.alerts() if kind == Kind.DATA_DRIFT
        ]
        seen.append(drift)
    resolved, opened = AlertState.RESOLVED, AlertState.OPEN
    # A pass sees the windows before the newest hour: 12 is the second that drifts, 16 the third clean one.
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
    announced = world.store.announced
    assert [12, 13] == [a.span.start_us // HOUR_US for a in announced]
    assert {"projects/p/alerts/alert-1"} == {a.alert for a in announced} or 1 == len(
        {a.alert for a in announced}
    )
    assert not any(a.data_quality_cause for a in announced)


async def test_labels_are_judged_after_their_lateness_and_not_while_outcomes_wait_unread(
    world: World,
) -> None:
    for number in range(10, 16):
        await world.hour(number, labelled=True)
        world.behind = Behind(outcomes=frozenset({3}))
        await world.watch.pass_once()
    assert Kind.CONCEPT_DRIFT not in {kind for kind, _, _ in await world.alerts()}
    world.behind = Behind()
    await world.hour(16)
    await world.watch.pass_once()
    concept = [(state, last) for kind, state, last in await world.alerts() if kind == Kind.CONCEPT_DRIFT]
    # Labels come for two hours after a window's end: 13 is the newest whose labels had their time.
    assert [(AlertState.OPEN, 13)] == concept


async def test_nothing_is_judged_while_a_partition_that_is_behind_has_shown_nothing(world: World) -> None:
    world.behind = Behind(answers=frozenset({2}))
    for number in (10, 11, 12):
        await world.hour(number)
    assert 0 == await world.watch.pass_once()
    world.behind = Behind()
    assert 2 == await world.watch.pass_once()


async def test_an_answer_that_comes_while_the_broker_is_asked_closes_no_window(world: World) -> None:
    """Nothing waited when the broker was asked; then an hour was sent to two partitions, of which one was read at once."""
    await world.hour(10)
    world.meanwhile = lambda: world.hour(11)
    assert 0 == await world.watch.pass_once()
    world.meanwhile = None
    assert 1 == await world.watch.pass_once()
