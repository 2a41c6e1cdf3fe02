"""When schedules and windows come due, and which ones are refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from flywheel_common.clock import ManualClock
from flywheel_trainer.encoding.specs import spec_to_json
from flywheel_trainer.fakes.pipeline_definitions import MemoryPipelineDefinitions
from flywheel_trainer.fakes.pipelines import MemoryPipelines
from flywheel_trainer.fakes.policies import MemoryPolicies
from flywheel_trainer.jobs.job import JobState
from flywheel_trainer.pipelines.graph import Condition
from flywheel_trainer.policies.decision import (
    Active,
    Reason,
    StartedRun,
    Trigger,
    decide,
    decide_time,
    trained_until,
)
from flywheel_trainer.policies.errors import InvalidPolicy
from flywheel_trainer.policies.policy import PolicyName
from flywheel_trainer.policies.schedule import (
    Continuous,
    Due,
    Misfire,
    Schedule,
    check_continuous,
    check_schedule,
    due,
    due_window,
    jitter,
)
from flywheel_trainer.policies.timetable import Timetable
from flywheel_trainer.policies.triggered_run import Cause, moment, run_for
from tests.support.builders import trainer as build
from tests.support.builders.trainer import WINDOW_END

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def fires(schedule: Schedule, start: str, count: int) -> list[str]:
    found, moment = [], at(start)
    for _ in range(count):
        moment = schedule.first_after(moment)
        found.append(f"{moment:%m-%dT%H:%M}")
    return found


@pytest.mark.parametrize(
    ("cron", "zone", "start", "expected"),
    [
        ("0 3 * * *", "UTC", "2026-01-01T03:00+00:00", ["01-02T03:00", "01-03T03:00"]),
        ("0 3 * * *", "Europe/Berlin", "2026-01-01T00:00+00:00", ["01-01T02:00", "01-02T02:00"]),
        ("0 3 * * *", "Asia/Kolkata", "2026-01-01T00:00+00:00", ["01-01T21:30", "01-02T21:30"]),
        # The clock goes from 2:00 to 3:00 on 29 March: 2:30 does not exist, 3:00 CEST is 1:00 UTC.
        ("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00+00:00", ["03-29T01:00", "03-30T00:30"]),
        # It goes from 3:00 back to 2:00 on 25 October: 2:30 occurs twice, at 0:30 and at 1:30 UTC.
        ("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00+00:00", ["10-25T00:30", "10-26T01:30"]),
        ("30 2,14 * * *", "Europe/Berlin", "2026-10-25T00:00+00:00", ["10-25T00:30", "10-25T13:30"]),
        ("30 1-3 * * *", "Europe/Berlin", "2026-10-25T00:00+00:00", ["10-25T00:30", "10-25T02:30"]),
        ("0 */2 * * *", "Europe/Berlin", "2026-10-24T23:30+00:00", ["10-25T00:00", "10-25T01:00"]),
        ("30 * * * *", "Europe/Berlin", "2026-10-25T00:00+00:00", ["10-25T00:30", "10-25T01:30"]),
        ("0 0 29 2 *", "UTC", "2026-01-01T00:00+00:00", ["02-29T00:00", "02-29T00:00"]),
        ("0 4 * * mon", "UTC", "2026-01-01T00:00+00:00", ["01-05T04:00", "01-12T04:00"]),
    ],
)
def test_a_cron_fires_in_its_time_zone(cron: str, zone: str, start: str, expected: list[str]) -> None:
    assert expected == fires(Schedule(cron, zone), start, 2)


@pytest.mark.parametrize(
    ("schedule", "field"),
    [
        (Schedule("0 0 30 2 *"), "cron"),
        (Schedule("0 0 31 4,6,9,11 *"), "cron"),
        (Schedule(""), "cron"),
        (Schedule("* * * *"), "cron"),
        (Schedule("* * * * * *"), "cron"),
        (Schedule("@daily"), "cron"),
        (Schedule("61 * * * *"), "cron"),
        (Schedule("R * * * *"), "cron"),
        (Schedule("H(0-5) * * * *"), "cron"),
        (Schedule("x y z a b"), "cron"),
        (Schedule("0 3 * * *", "Europe/Atlantis"), "time_zone"),
        (Schedule("0 3 * * *", "../../etc/passwd"), "time_zone"),
        (Schedule("0 3 * * *", ""), "time_zone"),
        (Schedule("0 3 * * *", jitter=25 * HOUR), "jitter"),
        (Schedule("0 3 * * *", jitter=-MINUTE), "jitter"),
        (Schedule("0 3 * * *", grace=31 * DAY), "misfire_grace"),
    ],
)
def test_a_wrong_schedule_is_refused(schedule: Schedule, field: str) -> None:
    with pytest.raises(InvalidPolicy) as caught:
        check_schedule(schedule)
    assert f"policy.schedule.{field}" in str(caught.value)


def test_good_schedules_are_accepted() -> None:
    for cron in ("0 3 * * *", "*/15 8-17 * * mon-fri", "0 0 1 jan,jul *", "0 0 29 2 *", "0 4 * * thu"):
        check_schedule(Schedule(cron, "Europe/Berlin"))


def test_missed_times_run_by_the_rule() -> None:
    hourly, start = Schedule("0 * * * *"), at("2026-01-01T00:00+00:00")

    def found(rule: Misfire, now: datetime, grace: timedelta = 10 * MINUTE) -> Due | None:
        return due(replace(hourly, misfire=rule, grace=grace), start, now, "p")

    for rule in Misfire:
        assert found(rule, start + 59 * MINUTE) is None
        assert Due(start + HOUR) == found(rule, start + HOUR)
        assert Due(start + HOUR) == found(rule, start + HOUR + 10 * MINUTE)
    late = start + 5 * HOUR + 11 * MINUTE
    assert Due(start + 5 * HOUR) == found(Misfire.LATEST, late)
    assert Due(start + 5 * HOUR, missed=True) == found(Misfire.SKIP, late)
    assert Due(start + HOUR) == found(Misfire.ALL, late)


def test_a_time_is_decided_after_its_jitter() -> None:
    schedule, start = Schedule("0 3 * * *", jitter=HOUR), at("2026-01-01T00:00+00:00")
    time = start + 3 * HOUR
    delays = {name: jitter(schedule, time, name) for name in map(str, range(200))}
    assert all(timedelta(0) <= delay < HOUR for delay in delays.values())
    assert max(delays.values()) > 55 * MINUTE
    assert min(delays.values()) < 5 * MINUTE
    for name, delay in delays.items():
        assert due(schedule, start, time + delay - timedelta(milliseconds=1), name) is None
        assert Due(time) == due(schedule, start, time + delay, name)


def test_a_window_is_due_after_its_end_and_its_delay() -> None:
    continuous, start = Continuous(6 * HOUR, delay=HOUR), at("2026-01-01T01:00+00:00")
    assert due_window(continuous, start, start + 5 * HOUR + 59 * MINUTE) is None
    end = at("2026-01-01T06:00+00:00")
    assert Due(end) == due_window(continuous, start, end + HOUR)
    assert due_window(continuous, end, end + 6 * HOUR) is None
    assert Due(end + 12 * HOUR) == due_window(continuous, end, end + 14 * HOUR), "the newest"
    for wrong in (Continuous(timedelta(0)), Continuous(HOUR, delay=-HOUR), Continuous(HOUR, daily_budget=0)):
        with pytest.raises(InvalidPolicy):
            check_continuous(wrong)


TIME = at("2026-01-01T03:00+00:00")


def trained(times: Sequence[datetime]) -> list[StartedRun]:
    """Runs that trained, by their event times."""
    return [StartedRun(time, JobState.SUCCEEDED, tracked=True) for time in times]


POLICY = build.policy(
    schedule=Schedule("0 3 * * *"), continuous=Continuous(HOUR, daily_budget=2), cooldown=365 * DAY
)


@pytest.mark.parametrize(
    ("changes", "due", "started", "active", "expected"),
    [
        ({}, Due(TIME), [], Active(), Reason.STARTED),
        ({}, Due(TIME), [TIME - HOUR], Active(), Reason.STARTED),
        ({"disabled": True}, Due(TIME), [], Active(), Reason.DISABLED),
        ({"ignore_drift": True}, Due(TIME), [], Active(), Reason.STARTED),
        ({"dry_run": True}, Due(TIME), [], Active(), Reason.DRY_RUN),
        ({}, Due(TIME, missed=True), [], Active(), Reason.MISFIRED),
        ({}, Due(TIME, missed=True), [], Active(of_model=True), Reason.MISFIRED),
        ({}, Due(TIME), [], Active(own=True), Reason.RUN_ACTIVE),
        ({}, Due(TIME), [], Active(own=True, of_model=True), Reason.RUN_ACTIVE),
        ({}, Due(TIME), [], Active(of_model=True), None),
        ({"schedule": Schedule("0 3 * * *", misfire=Misfire.ALL)}, Due(TIME), [], Active(own=True), None),
    ],
)
def test_a_time_of_the_schedule_is_decided(
    changes: dict[str, object],
    due: Due,
    started: Sequence[datetime],
    active: Active,
    expected: Reason | None,
) -> None:
    policy = replace(POLICY, **changes)
    assert expected == decide_time(policy, Trigger.SCHEDULE, due, trained(started), active)


def test_continuous_runs_have_a_budget_of_their_own() -> None:
    for started, expected in (
        ([TIME - HOUR], Reason.STARTED),
        ([TIME - HOUR, TIME - 2 * HOUR], Reason.BUDGET),
        ([TIME - 10 * HOUR, TIME - 11 * HOUR], Reason.STARTED),
    ):
        assert expected == decide_time(POLICY, Trigger.CONTINUOUS, Due(TIME), trained(started), Active())


def test_runs_with_too_few_new_rows_leave_the_budget() -> None:
    idle = [StartedRun(TIME - HOUR, JobState.SUCCEEDED), StartedRun(TIME - 2 * HOUR, JobState.SUCCEEDED)]
    counting = replace(POLICY, continuous=Continuous(HOUR, daily_budget=2, new_rows=50))
    failed = replace(idle[0], state=JobState.FAILED)
    for policy, started, expected in (
        (POLICY, idle, Reason.BUDGET),
        (counting, idle, Reason.STARTED),
        (counting, trained([run.event_time for run in idle]), Reason.BUDGET),
        (counting, [failed, replace(failed, tracked=True)], Reason.BUDGET),
    ):
        assert expected == decide_time(policy, Trigger.CONTINUOUS, Due(TIME), started, Active())


def test_rows_count_from_the_last_window_that_was_trained_on() -> None:
    started = [
        *trained([TIME - 9 * HOUR, TIME - 5 * HOUR, TIME + HOUR]),
        StartedRun(TIME - 4 * HOUR, JobState.SUCCEEDED),
        StartedRun(TIME - 3 * HOUR, JobState.FAILED, True),
        StartedRun(TIME - 2 * HOUR, None),
    ]
    assert TIME - 5 * HOUR == trained_until(started, TIME)
    assert trained_until(started[3:], TIME) is None
    policy = replace(POLICY, history=4 * DAY, continuous=Continuous(HOUR, new_rows=50))
    start = TIME - 4 * DAY
    for until, expected in ((None, start), (TIME - DAY, TIME - DAY), (TIME - 9 * DAY, start)):
        cause = Cause(Trigger.CONTINUOUS, TIME, trained_until=until)
        graph = run_for(policy, cause, None, spec_to_json).graph
        source = graph.step("new_rows").spec["spine"]["source"]
        times = expected.isoformat().replace("+00:00", "Z"), TIME.isoformat().replace("+00:00", "Z")
        assert times == (source["start_time"], source["end_time"])
        assert graph.step("training_set").conditions == (Condition("new_rows", "row_count", ">=", 50),)
        whole = graph.step("training_set").spec["spine"]["source"]
        assert start.isoformat().replace("+00:00", "Z") == whole["start_time"]
        assert moment(policy, cause)["trained_until"] == times[0]
    scheduled = run_for(policy, Cause(Trigger.SCHEDULE, TIME), None, spec_to_json)
    assert "new_rows" not in [step.id for step in scheduled.graph.steps]


def test_a_failed_run_uses_the_budget_and_not_the_cooldown() -> None:
    policy = build.policy(cooldown=7 * DAY, daily_budget=2)
    drift = build.drift()
    before = WINDOW_END - HOUR
    assert Reason.COOLDOWN == decide(policy, drift, [before], False)
    assert Reason.STARTED == decide(policy, drift, [], False, failed_at=[before])
    assert Reason.BUDGET == decide(policy, drift, [], False, failed_at=[before, before - HOUR])
    assert Reason.DISABLED == decide(replace(policy, ignore_drift=True), drift, [], False)


async def test_a_policy_that_cannot_be_decided_does_not_stop_the_others() -> None:
    store = MemoryPolicies(MemoryPipelines(), MemoryPipelineDefinitions())
    clock = ManualClock(TIME)
    for name, zone in (("a", "Removed/Zone"), ("b", "UTC")):
        policy = replace(
            POLICY, name=PolicyName("p", name), schedule=Schedule("0 4 * * *", zone), continuous=None
        )
        await store.set(policy, "", b"", TIME)
    clock.advance(HOUR.total_seconds())
    await Timetable(store, clock).decide_due()
    (decision,) = (await store.decisions(PolicyName("p", "b"), 9, "")).items
    assert (True, TIME + HOUR) == (decision.started, decision.event_time)
