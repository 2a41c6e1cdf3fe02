"""One law for windows that are due, their reports and verdicts, in memory, in PostgreSQL and, where an RPC shows them, through gRPC."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from flywheel_common.errors import NotFound
from flywheel_monitor import convert
from flywheel_monitor.alerts import Kind
from flywheel_monitor.drift import FeatureDrift, Verdict
from flywheel_monitor.evaluation import Judged, Report
from flywheel_monitor.performance import Quality
from flywheel_monitor.score_shift import ScoreReference, ScoreShift
from flywheel_monitor.windows import Frontier, Newest, Span

HOUR_US = 3_600_000_000
FEATURE = FeatureDrift(
    "v__x", 0.5, 0.25, 0.125, 1e-9, None, None, 2e-9, -1.5, 0.0, 0.0, 0.01, Verdict.DRIFT, "PSI 0.250"
)
SHIFT = ScoreShift(0.5, 0.25, 0.4, 0.2, 0.5, 3.5, 0.05, Verdict.NO_DRIFT, "mean score 0.5")
REPORT = Report(
    "projects/p/models/late/versions/1", Span(0, HOUR_US), 10, (FEATURE,), SHIFT, Verdict.DRIFT, "major drift", "sha256:ab",
    Quality(4, 0.75, 0.5, 0.2, 0.1, 0.25), -0.25,
)  # fmt: skip
FIRST = ScoreReference(0.5, 0.25, 10, (1, 2, 7))


def hour(number: int) -> Span:
    return Span(number * HOUR_US, (number + 1) * HOUR_US)


async def known(monitor: Any, number: int = 1) -> int:
    """The number of a version that has answered."""
    await monitor.predicted(monitor.batch([f"known-{number}"], version=number, release=number))
    async with monitor.store.reading() as records:
        return (await records.version(monitor.version(number))).id


async def test_the_newest_window_that_served_anybody_is_shown_whatever_came_last(monitor: Any) -> None:
    version = await known(monitor)
    with pytest.raises(NotFound) as none:
        await monitor.asks.report(monitor.version())
    assert "NO_PREDICTIONS" == none.value.reason
    async with monitor.store.transaction() as records:
        for number, predictions in ((5, 20), (7, 0), (3, 10)):
            await records.put_report(version, replace(REPORT, span=hour(number), predictions=predictions))
        other = replace(REPORT, span=hour(9), model_version=monitor.version(2))
        await records.put_report(await known_in(records, monitor, 2), other)
    shown = await monitor.asks.report(monitor.version())
    assert convert.report_to_proto(replace(REPORT, span=hour(5), predictions=20)) == shown
    assert 4 == (await monitor.asks.status())[2]
    assert 0 == (await monitor.asks.status("q"))[2]


async def known_in(records: Any, monitor: Any, number: int) -> int:
    await records.add_predictions(
        1, [monitor.batch([f"in-{number}"], version=number, release=number, role=2)]
    )
    return (await records.version(monitor.version(number))).id


async def test_a_report_on_the_same_window_replaces_the_one_before(monitor: Any) -> None:
    version = await known(monitor)
    revised = replace(REPORT, predictions=12, verdict=Verdict.WARNING, features=())
    for report in (REPORT, revised):
        async with monitor.store.transaction() as records:
            await records.put_report(version, report)
    assert convert.report_to_proto(revised) == await monitor.asks.report(monitor.version())
    assert 1 == (await monitor.asks.status())[2]
    with pytest.raises(ZeroDivisionError):
        async with monitor.store.transaction() as records:
            await records.put_report(version, REPORT)
            raise ZeroDivisionError
    assert convert.report_to_proto(revised) == await monitor.asks.report(monitor.version())


async def test_a_model_is_shown_by_the_version_that_answered_last_as_its_champion(monitor: Any) -> None:
    with pytest.raises(NotFound) as unknown:
        await monitor.asks.report(monitor.model)
    assert "UNKNOWN_MODEL" == unknown.value.reason
    start = monitor.start_us

    async def answers(name: str, version: int, role: int, later: int) -> None:
        batch = monitor.batch([name], version=version, release=version, role=role, times=[start + later])
        await monitor.predicted(batch)

    async def shown() -> str:
        return (await monitor.asks.report(monitor.model, start, start + HOUR_US)).model_version

    await answers("a", 1, role=2, later=0)
    with pytest.raises(NotFound) as nobody:
        await shown()
    assert "NO_PREDICTIONS" == nobody.value.reason
    await answers("b", 1, role=1, later=10)
    await answers("c", 2, role=2, later=20)
    await answers("d", 2, role=3, later=21)
    assert monitor.version(1) == await shown()
    await answers("e", 2, role=1, later=30)
    assert monitor.version(2) == await shown()
    await answers("f", 1, role=1, later=29)
    assert monitor.version(2) == await shown(), "an answer that comes late is none the newer"
    await answers("g", 1, role=1, later=31)
    assert monitor.version(1) == await shown()


@pytest.mark.without_grpc("only the watch reads verdicts")
async def test_recent_verdicts_are_the_newest_windows_of_their_kind_that_had_enough_rows(
    monitor: Any,
) -> None:
    version, other = await known(monitor, 1), await known(monitor, 2)
    async with monitor.store.transaction() as records:
        for number, verdict in ((1, 1), (4, 5), (3, 3), (2, 2)):
            await records.put_verdict(
                version, Kind.DATA_DRIFT, hour(number), Verdict(verdict), f"was {verdict}"
            )
        await records.put_verdict(version, Kind.CONCEPT_DRIFT, hour(8), Verdict.DRIFT, "another kind")
        await records.put_verdict(other, Kind.DATA_DRIFT, hour(9), Verdict.DRIFT, "another version")
        newest = Judged(Verdict.DRIFT, hour(3), "was 3"), Judged(Verdict.WARNING, hour(2), "was 2")
        assert list(newest) == await records.recent(version, Kind.DATA_DRIFT, 2)
        await records.put_verdict(version, Kind.DATA_DRIFT, hour(3), Verdict.INSUFFICIENT, "revised")
        await records.put_verdict(version, Kind.DATA_DRIFT, hour(4), Verdict.NO_DRIFT, "revised")
        found = await records.recent(version, Kind.DATA_DRIFT, 9)
    assert [hour(4), hour(2), hour(1)] == [j.span for j in found]
    assert Judged(Verdict.NO_DRIFT, hour(4), "revised") == found[0]


@pytest.mark.without_grpc("only the watch knows how far windows were evaluated")
async def test_a_frontier_never_moves_back_and_labels_have_their_own(monitor: Any) -> None:
    first, second = await known(monitor, 1), await known(monitor, 2)
    async with monitor.store.transaction() as records:
        for until in (5, 9, 7):
            await records.close(first, until, labels=False)
        for until in (4, 2):
            await records.close(first, until, labels=True)
        frontiers = {f.version_id: f for f in await records.frontiers()}
    model = frontiers[first].model_id
    assert {first: Frontier(first, model, 9, 4), second: Frontier(second, model, 0, 0)} == frontiers


@pytest.mark.without_grpc("only the watch looks for windows that are due")
async def test_windows_are_those_that_served_anybody_oldest_first(monitor: Any) -> None:
    version, start = await known(monitor), monitor.start_us
    hours = (3, 1, 1, 7)
    times = [start + h * HOUR_US + 5 for h in hours]
    await monitor.predicted(monitor.batch(["a", "b", "c", "d"], times=times))
    await monitor.predicted(monitor.batch(["e"], times=[start + 5 * HOUR_US], role=3))
    await monitor.predicted(monitor.batch(["f"], times=[start + 4 * HOUR_US], version=2, release=2))

    async def found(begin: int, end: int, width: int = HOUR_US) -> list[int]:
        async with monitor.store.reading() as records:
            spans = await records.windows(version, start + begin * HOUR_US, start + end * HOUR_US, width)
        assert all(s.end_us - s.start_us == width for s in spans)
        return [(s.start_us - start) // HOUR_US for s in spans]

    assert [0, 1, 3, 7] == await found(0, 8)
    assert [1, 3] == await found(1, 7)
    assert [0, 2, 6] == await found(0, 8, 2 * HOUR_US)
    assert [] == await found(4, 7)


@pytest.mark.without_grpc("only the watch needs to know how far each partition is read")
async def test_progress_is_the_newest_time_of_each_partition(monitor: Any) -> None:
    start, other = monitor.start_us, "projects/p/models/other"
    await monitor.predicted(monitor.batch(["a", "b"], times=[start + 5, start + 3]), partition=0)
    await monitor.predicted(monitor.batch(["c"], times=[start + 1]), partition=0)
    await monitor.predicted(monitor.batch(["d"], times=[start + 2]), partition=3)
    await monitor.predicted(monitor.batch(["d"], times=[start + 9]), partition=3)
    await monitor.labelled(
        monitor.outcomes(["a", "d"], [1.0, 1.0], times=[start + 7, start + 6]), partition=1
    )
    await monitor.labelled(monitor.outcomes(["x"], [1.0], times=[start + 4], model=other), partition=0)
    async with monitor.store.reading() as records:
        newest = await records.read_up_to()
        numbers = {name: number for number, name, _ in await records.policies()}
    model, second = numbers[monitor.model], numbers[other]
    assert (
        Newest({model: {0: start + 5, 3: start + 2}}, {model: {1: start + 7}, second: {0: start + 4}})
        == newest
    )


@pytest.mark.without_grpc("the reference scores are the watch's")
async def test_the_scores_of_the_first_window_stay_those_of_the_first(monitor: Any) -> None:
    version = await known(monitor)
    for reference in (FIRST, replace(FIRST, mean=0.9)):
        async with monitor.store.transaction() as records:
            await records.set_first_window(version, reference)
    async with monitor.store.transaction() as records:
        assert FIRST == (await records.lock(version)).first_window
        assert FIRST == (await records.version(monitor.version())).first_window


@pytest.mark.without_grpc("only the watch locks a version")
async def test_who_locks_a_version_waits_for_the_one_before_and_sees_what_it_did(monitor: Any) -> None:
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
