"""Contract tests of report stores: windows to judge, reports, verdicts and frontiers."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from flywheel_common.errors import InvalidPageToken, NotFound
from flywheel_monitor.alerts.lifecycle import Kind
from flywheel_monitor.drift.score_shift import ScoreShift
from flywheel_monitor.drift.statistics import FeatureDrift
from flywheel_monitor.drift.verdict import Verdict
from flywheel_monitor.evaluation.ports import Frontier
from flywheel_monitor.evaluation.report import Report
from flywheel_monitor.evaluation.report_lookup import (
    Distributions,
    find_distributions,
    find_report,
    find_reports,
)
from flywheel_monitor.evaluation.verdicts import WindowVerdict
from flywheel_monitor.models.policy import WEEK_US
from flywheel_monitor.performance.quality import Quality
from flywheel_monitor.references.reference import ScoreReference
from flywheel_monitor.windows.watermark import ReachedTimes
from tests.support.builders.monitor import (
    HOUR_US,
    MODEL,
    PANE_US,
    SHADOW,
    START_US,
    STRICT_POLICY,
    hour,
    outcomes,
    predictions,
    version_name,
)
from tests.support.servers.monitor import LocalMonitor

FEATURE = FeatureDrift(
    feature="v__x",
    psi=0.5,
    psi_corrected=0.25,
    ks=0.125,
    ks_p_value=1e-9,
    adjusted_p_value=2e-9,
    mean_shift=-1.5,
    unseen_rate=0.01,
    verdict=Verdict.DRIFT,
    reason="PSI 0.250",
)
REPORT = Report(
    model_version=version_name(),
    span=hour(0),
    predictions=10,
    features=(FEATURE,),
    score=ScoreShift(0.5, 0.25, 0.4, 0.2, 0.5, 3.5, 0.05, Verdict.NO_DRIFT, "mean score 0.5"),
    verdict=Verdict.DRIFT,
    reason="major drift",
    reference_hash="sha256:ab",
    quality=Quality(4, 0.75, 0.5, 0.2, 0.1, 0.25),
    label_shift=-0.25,
)
FIRST = ScoreReference(0.5, 0.25, 10, (1, 2, 7))


async def known(monitor: LocalMonitor, number: int = 1) -> int:
    """The id of a version that has made a prediction."""
    await monitor.predicted(predictions([f"known-{number}"], version=number, release=number))
    async with monitor.store.reading() as records:
        return (await records.version(version_name(number))).id


async def test_the_newest_window_with_predictions_is_shown(monitor: LocalMonitor) -> None:
    version = await known(monitor)
    with pytest.raises(NotFound) as none:
        await monitor.report()
    assert "NO_PREDICTIONS" == none.value.reason
    async with monitor.store.transaction() as records:
        for number, predictions in ((5, 20), (7, 0), (3, 10)):
            await records.put_report(version, replace(REPORT, span=hour(number), predictions=predictions))
        other = replace(REPORT, span=hour(9), model_version=version_name(2))
        await records.put_report(await known_in(records, 2), other)
    shown = await monitor.report()
    assert replace(REPORT, span=hour(5), predictions=20) == shown
    assert 4 == (await monitor.status())[2]
    assert 0 == (await monitor.status("q"))[2]


async def known_in(records: Any, number: int) -> int:
    await records.add_predictions(1, [predictions([f"in-{number}"], version=number, release=number, role=2)])
    return (await records.version(version_name(number))).id


async def test_a_report_replaces_that_on_the_same_window(monitor: LocalMonitor) -> None:
    version = await known(monitor)
    revised = replace(REPORT, predictions=12, verdict=Verdict.WARNING, features=())
    for report in (REPORT, revised):
        async with monitor.store.transaction() as records:
            await records.put_report(version, report)
    assert revised == await monitor.report()
    assert 1 == (await monitor.status())[2]
    with pytest.raises(ZeroDivisionError):
        async with monitor.store.transaction() as records:
            await records.put_report(version, REPORT)
            raise ZeroDivisionError
    assert revised == await monitor.report()


async def test_a_model_is_shown_by_its_newest_champion(monitor: LocalMonitor) -> None:
    with pytest.raises(NotFound) as unknown:
        await monitor.report(MODEL)
    assert "UNKNOWN_MODEL" == unknown.value.reason
    start = START_US

    async def predict(name: str, version: int, role: int, later: int) -> None:
        batch = predictions([name], version=version, release=version, role=role, times=[start + later])
        await monitor.predicted(batch)

    async def shown() -> str:
        return (await monitor.report(MODEL, start, start + HOUR_US)).model_version

    await predict("a", 1, role=2, later=0)
    with pytest.raises(NotFound) as missing:
        await shown()
    assert "NO_PREDICTIONS" == missing.value.reason
    await predict("b", 1, role=1, later=10)
    await predict("c", 2, role=2, later=20)
    await predict("d", 2, role=3, later=21)
    assert version_name(1) == await shown()
    await predict("e", 2, role=1, later=30)
    assert version_name(2) == await shown()
    await predict("f", 1, role=1, later=29)
    assert version_name(2) == await shown(), "a late prediction is not the newest"
    await predict("g", 1, role=1, later=31)
    assert version_name(1) == await shown()


async def test_one_wrong_time_makes_no_version_the_champion(monitor: LocalMonitor) -> None:
    for number, start in ((1, START_US), (2, START_US + HOUR_US)):
        ids = [f"{number}-{i}" for i in range(3)]
        await monitor.predicted(predictions(ids, version=number, release=number, times=[start] * 3))
    await monitor.predicted(predictions(["wrong"], times=[START_US + 1000 * HOUR_US]))
    assert version_name(2) == (await monitor.report(MODEL, START_US, START_US + 2 * HOUR_US)).model_version
    late = [START_US + 2 * HOUR_US] * 2
    await monitor.predicted(predictions(["right-1", "right-2"], times=late))
    assert version_name(1) == (await monitor.report(MODEL, START_US, START_US + 2 * HOUR_US)).model_version


async def test_a_report_compares_with_the_same_hours_of_an_earlier_week(monitor: LocalMonitor) -> None:
    values = [1.0, 2.0] * 10
    for week, shown in enumerate((values, values, [1.0, -1.0] * 10)):
        times = START_US + week * WEEK_US + np.arange(20)
        ids = [f"{week}-{i}" for i in range(20)]
        await monitor.predicted(predictions(ids, times=times, values=shown, segments=["JFK"] * 20))
    version = version_name()

    async def verdicts(weeks: int, segment: str = "") -> list[Verdict]:
        async with monitor.store.transaction() as records:
            await records.set_policy(MODEL, replace(STRICT_POLICY, seasonal_weeks=weeks))
        starts = [START_US + week * WEEK_US for week in range(3)]
        found = [
            await find_report(
                monitor.store, version, start_us=at, end_us=at + HOUR_US, segment=segment, pane_us=PANE_US
            )
            for at in starts
        ]
        return [report.verdict for report in found]

    drift, none = Verdict.DRIFT, Verdict.NO_DRIFT
    assert [drift, drift, none] == await verdicts(0)
    assert [drift, none, none] == await verdicts(1)
    assert [drift, none, none] == await verdicts(1, "JFK")
    assert [drift, drift, none] == await verdicts(2)


async def test_recent_verdicts_are_the_newest_with_enough_rows(
    monitor: LocalMonitor,
) -> None:
    version, other = await known(monitor, 1), await known(monitor, 2)
    async with monitor.store.transaction() as records:
        for number, verdict in ((1, 1), (4, 5), (3, 3), (2, 2)):
            drifted = {"v__x": Verdict(verdict)} if verdict in (2, 3) else {}
            found = WindowVerdict(Verdict(verdict), hour(number), f"was {verdict}", drifted)
            await records.put_verdict(version, Kind.DATA_DRIFT, found)
        for one, kind in ((version, Kind.CONCEPT_DRIFT), (other, Kind.DATA_DRIFT)):
            await records.put_verdict(one, kind, WindowVerdict(Verdict.DRIFT, hour(9), "another"))
        newest = (
            WindowVerdict(Verdict.DRIFT, hour(3), "was 3", {"v__x": Verdict.DRIFT}),
            WindowVerdict(Verdict.WARNING, hour(2), "was 2", {"v__x": Verdict.WARNING}),
        )
        assert list(newest) == await records.recent(version, Kind.DATA_DRIFT, 2)
        assert newest[1] == await records.verdict(version, Kind.DATA_DRIFT, hour(2))
        assert await records.verdict(version, Kind.DATA_DRIFT, hour(7)) is None
        for number, verdict in ((3, Verdict.INSUFFICIENT), (4, Verdict.NO_DRIFT)):
            await records.put_verdict(
                version, Kind.DATA_DRIFT, WindowVerdict(verdict, hour(number), "revised")
            )
        found = await records.recent(version, Kind.DATA_DRIFT, 9)
    assert [hour(4), hour(2), hour(1)] == [j.span for j in found]
    assert WindowVerdict(Verdict.NO_DRIFT, hour(4), "revised") == found[0]


async def test_frontiers_never_move_back_and_labels_have_their_own(monitor: LocalMonitor) -> None:
    first, second = await known(monitor, 1), await known(monitor, 2)
    async with monitor.store.transaction() as records:
        for until in (5, 9, 7):
            await records.close(first, until, labels=False)
        for until in (4, 2):
            await records.close(first, until, labels=True)
        frontiers = {f.version_id: f for f in await records.frontiers()}
    model = frontiers[first].model_id
    assert {first: Frontier(first, model, 9, 4), second: Frontier(second, model, 0, 0)} == frontiers


async def test_windows_with_served_predictions_are_listed_oldest_first(monitor: LocalMonitor) -> None:
    version, start = await known(monitor), START_US
    hours = (3, 1, 1, 7)
    times = [start + h * HOUR_US + 5 for h in hours]
    await monitor.predicted(predictions(["a", "b", "c", "d"], times=times))
    await monitor.predicted(predictions(["e"], times=[start + 5 * HOUR_US], role=3))
    await monitor.predicted(predictions(["f"], times=[start + 4 * HOUR_US], version=2, release=2))

    async def found(begin: int, end: int, width: int = HOUR_US) -> list[int]:
        async with monitor.store.reading() as records:
            spans = await records.windows(version, start + begin * HOUR_US, start + end * HOUR_US, width)
        assert all(s.end_us - s.start_us == width for s in spans)
        return [(s.start_us - start) // HOUR_US for s in spans]

    assert [0, 1, 3, 7] == await found(0, 8)
    assert [1, 3] == await found(1, 7)
    assert [0, 2, 6] == await found(0, 8, 2 * HOUR_US)
    assert [] == await found(4, 7)


async def test_reached_times_are_kept_per_partition(monitor: LocalMonitor) -> None:
    start, other = START_US, "projects/p/models/other"
    await monitor.predicted(predictions(["a", "b"], times=[start + 5, start + 3]), partition=0)
    await monitor.predicted(predictions(["c"], times=[start + 1]), partition=0)
    await monitor.predicted(predictions(["d"], times=[start + 2]), partition=3)
    for _ in range(3):
        await monitor.predicted(predictions(["d"], times=[start + 9]), partition=3)
        await monitor.labelled(outcomes(["x"], [1.0], times=[start + 4], model=other), partition=0)
    await monitor.predicted(predictions(["a", "e", "f"], times=[start + 9] * 3, role=SHADOW), partition=3)
    times = [start + 7, start + 6, start + 8, start + 6]
    await monitor.labelled(outcomes(list("adxa"), [1.0] * 4, times=times), partition=1)
    clicks = outcomes(["a", "b", "c"], [1.0] * 3, times=[start + 11, start + 10, start + 12], name="click")
    await monitor.labelled(clicks, clicks, partition=2)
    async with monitor.store.reading() as records:
        reached = await records.reached_times()
        numbers = {name: number for number, name, _ in await records.policies()}
    model = numbers[MODEL]
    # Repeated and shadow predictions do not count, and two events reach nothing.
    assert ReachedTimes({model: {0: start + 1}}, {model: {1: start + 6, 2: start + 10}}) == reached
    assert start + 1 == (await monitor.status())[1]


async def test_a_reached_time_follows_the_last_32_events(monitor: LocalMonitor) -> None:
    wrong = START_US + 10_000 * HOUR_US
    times = [wrong] * 7 + [START_US + i for i in range(25)]
    seen = []
    for place, time in enumerate([*times, wrong, *[START_US + 25 + i for i in range(32)]]):
        await monitor.predicted(predictions([f"{place}"], times=[time]))
        seen.append((await monitor.status())[1])
    # Of 32 events a quarter, 8, must have reached a time: 7 wrong ones alone do not suffice.
    assert [None, None] + [wrong] * 5 == seen[:7]
    assert START_US + 24 == seen[31]
    # The 33rd event is wrong, but the first one is forgotten.
    assert START_US + 24 == seen[32]
    assert START_US + 56 - 7 == seen[-1]


async def test_the_scores_of_the_first_window_are_kept(monitor: LocalMonitor) -> None:
    version = await known(monitor)
    for reference in (FIRST, replace(FIRST, mean=0.9)):
        async with monitor.store.transaction() as records:
            await records.set_first_window(version, reference)
    async with monitor.store.transaction() as records:
        assert FIRST == (await records.lock(version)).first_window
        assert FIRST == (await records.version(version_name())).first_window


async def test_a_version_lock_is_exclusive_and_sees_earlier_changes(monitor: LocalMonitor) -> None:
    version, seen, inside = await known(monitor), [], 0

    async def judge(mean: float) -> None:
        nonlocal inside
        async with monitor.store.transaction() as records:
            before = (await records.lock(version)).first_window
            inside += 1
            assert 1 == inside
            await asyncio.sleep(0.01)
            await records.set_first_window(version, replace(FIRST, mean=mean))
            seen.append((mean, before))
            inside -= 1

    await asyncio.gather(*(judge(float(i)) for i in range(4)))
    first = seen[0][0]
    assert [None] + [replace(FIRST, mean=first)] * 3 == [before for _, before in seen]


async def test_reports_are_listed_newest_first_in_pages(monitor: LocalMonitor) -> None:
    version = await known(monitor)
    async with monitor.store.transaction() as records:
        for number, predictions in ((5, 20), (7, 0), (3, 10), (4, 30)):
            await records.put_report(version, replace(REPORT, span=hour(number), predictions=predictions))
    first = await find_reports(monitor.store, MODEL, 2, "")
    rest = await find_reports(monitor.store, version_name(), 2, first.next_page_token)
    assert [hour(5), hour(4)] == [report.span for report in first.items]
    assert ([hour(3)], "") == ([report.span for report in rest.items], rest.next_page_token)
    with pytest.raises(InvalidPageToken):
        await find_reports(monitor.store, MODEL, 2, "abcd")


async def test_distributions_have_every_row_of_the_window(monitor: LocalMonitor) -> None:
    ids = [f"d-{i}" for i in range(40)]
    values = [-5.0] * 4 + [-1.0] * 6 + [1.0] * 10 + [None] * 20
    scores = [0.1] * 30 + [0.9] * 10
    segments = ["carrier=UA"] * 10 + ["carrier=AA"] * 30
    await monitor.predicted(predictions(ids, scores, values=values, segments=segments))

    async def found(segment: str = "") -> Distributions:
        return await find_distributions(
            monitor.store,
            version_name(),
            start_us=START_US,
            end_us=START_US + HOUR_US,
            segment=segment,
            pane_us=PANE_US,
        )

    seen = await found()
    (feature,) = seen.features
    assert (40, ["carrier=AA", "carrier=UA"]) == (seen.predictions, seen.segments)
    assert ("v__x", (0.0,), (50, 50)) == (feature.name, feature.edges, feature.reference)
    assert ((10, 10), 20, 0) == (feature.observed, feature.observed_missing, feature.observed_unseen)
    assert 40 == sum(seen.scores.observed)
    assert len(seen.scores.observed) - 1 == len(seen.scores.edges)
    assert sum(n for n, e in zip(seen.scores.observed, seen.scores.edges, strict=False) if e <= 0.5) <= 30
    assert (10, (10, 0)) == (
        (await found("carrier=UA")).predictions,
        (await found("carrier=UA")).features[0].observed,
    )
    with pytest.raises(NotFound):
        await find_distributions(
            monitor.store, version_name(), start_us=0, end_us=HOUR_US, segment="", pane_us=PANE_US
        )
