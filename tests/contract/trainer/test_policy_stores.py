"""Contract tests for stores of retraining policies and their decisions."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, timedelta
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict

from flywheel_common.errors import InvalidPageToken
from flywheel_common.postgres.errors import RequestIdReused
from flywheel_protos.feature.v1.training_set_pb2 import Spine
from flywheel_trainer.jobs.job import ENDED, JobState
from flywheel_trainer.pipelines.pipeline_run import PipelineRunName
from flywheel_trainer.pipelines.rerun import rerun
from flywheel_trainer.policies.decision import Decision, Reason, Trigger
from flywheel_trainer.policies.policy import PolicyName
from flywheel_trainer.policies.ports import TimedPolicy
from flywheel_trainer.policies.schedule import Continuous, Due, Misfire, Schedule
from tests.support.builders.trainer import AT, DAY, WINDOW_END, drift, policy

POLICY = policy()
NAME = POLICY.name


async def decisions(stores: Any, name: PolicyName = NAME, size: int = 99) -> list[Decision]:
    """All decisions of a policy, read page by page."""
    found, token = [], ""
    while True:
        page = await stores.policies.decisions(name, size, token)
        found += page.items
        token = page.next_page_token
        if not token:
            return found


async def test_a_policy_replaces_the_previous_one_of_its_model(stores: Any) -> None:
    assert await stores.policies.get(NAME) is None
    assert POLICY == await stores.policies.set(POLICY, "", b"", AT)
    newer = replace(POLICY, cooldown=timedelta(hours=1.5), trigger_kinds=(), dry_run=True, disabled=True)
    assert newer == await stores.policies.set(newer, "", b"", AT)
    assert newer == await stores.policies.get(NAME)
    assert await stores.policies.get(PolicyName("q", "late")) is None
    other = policy("q")
    await stores.policies.set(other, "", b"", AT)
    assert newer == await stores.policies.get(NAME)
    assert other == await stores.policies.get(PolicyName("q", "late"))


async def test_a_repeated_request_does_not_undo_a_newer_policy(stores: Any) -> None:
    results = await asyncio.gather(*(stores.policies.set(POLICY, "once", b"body", AT) for _ in range(10)))
    assert [POLICY] * 10 == results
    newer = replace(POLICY, daily_budget=5)
    await stores.policies.set(newer, "later", b"newer", AT)
    assert POLICY == await stores.policies.set(POLICY, "once", b"body", AT)
    assert newer == await stores.policies.get(NAME)
    with pytest.raises(RequestIdReused):
        await stores.policies.set(replace(POLICY, daily_budget=9), "once", b"other", AT)
    assert newer == await stores.policies.get(NAME)


async def test_a_decision_is_stored_with_the_run_that_it_starts(stores: Any) -> None:
    await stores.policies.set(POLICY, "", b"", AT)
    await stores.decide(drift("a1"), AT)
    (decision,) = await decisions(stores)
    (run,) = (await stores.pipelines.list("p", (), 9, "")).items
    assert decision == Decision(
        policy=NAME,
        alert="projects/p/alerts/a1",
        model="projects/p/models/late",
        event_time=WINDOW_END,
        started=True,
        reason=Reason.STARTED,
        pipeline_run=str(run.name),
    )
    assert (WINDOW_END, "projects/p/alerts/a1") == (run.event_time, run.cause_alert)
    assert JobState.QUEUED == run.state
    source = ParseDict(dict(run.spec.spine), Spine()).source
    assert ("projects/p/sources/landed", "late") == (source.source, source.label)
    times = (source.start_time, source.end_time, source.known_before)
    expected = [WINDOW_END - 30 * DAY, WINDOW_END, WINDOW_END]
    assert expected == [at.ToDatetime(tzinfo=UTC) for at in times]
    assert replace(POLICY.pipeline, spine={}) == replace(run.spec, spine={})


async def test_each_window_of_an_alert_is_decided_once(stores: Any) -> None:
    await stores.policies.set(POLICY, "", b"", AT)
    await asyncio.gather(*(stores.decide(drift("a1"), AT) for _ in range(5)))
    await stores.decide(drift("a1", kind="LABEL_DRIFT"), AT)
    assert [Reason.STARTED] == [d.reason for d in await decisions(stores)]
    (run,) = (await stores.pipelines.list("p", (), 9, "")).items
    await stores.decide(drift("a1", WINDOW_END + DAY), AT)
    await stores.pipelines.finish(run.name, JobState.SUCCEEDED, "", "", AT)
    await stores.decide(drift("a1", WINDOW_END + 2 * DAY), AT)
    await stores.decide(drift("a1", WINDOW_END + 8 * DAY), AT)
    assert [
        (WINDOW_END + 8 * DAY, Reason.STARTED),
        (WINDOW_END + 2 * DAY, Reason.COOLDOWN),
        (WINDOW_END + DAY, Reason.RUN_ACTIVE),
        (WINDOW_END, Reason.STARTED),
    ] == [(d.event_time, d.reason) for d in await decisions(stores)]
    assert 2 == len((await stores.pipelines.list("p", (), 9, "")).items)


async def test_concurrent_decisions_start_one_run(stores: Any) -> None:
    await stores.policies.set(policy(cooldown=timedelta(0), daily_budget=9), "", b"", AT)
    await asyncio.gather(*(stores.decide(drift(f"a{i}"), AT) for i in range(6)))
    reasons = sorted(d.reason for d in await decisions(stores))
    assert [Reason.RUN_ACTIVE] * 5 + [Reason.STARTED] == reasons
    assert 1 == len((await stores.pipelines.list("p", (), 9, "")).items)


async def test_decisions_that_start_nothing_are_stored_with_a_reason(stores: Any) -> None:
    await stores.policies.set(policy(dry_run=True), "", b"", AT)
    await stores.decide(drift("a1", data_quality_cause=True), AT)
    await stores.decide(drift("a2", kind="CONCEPT_DRIFT"), AT)
    await stores.decide(drift("a3"), AT)
    await stores.policies.set(policy(disabled=True), "", b"", AT)
    await stores.decide(drift("a4"), AT)
    found = await decisions(stores)
    assert [Reason.DISABLED, Reason.DRY_RUN, Reason.KIND_NOT_LISTED, Reason.DATA_QUALITY] == [
        d.reason for d in found
    ]
    assert {(False, "")} == {(d.started, d.pipeline_run) for d in found}
    assert [] == list((await stores.pipelines.list("p", (), 9, "")).items)


async def test_drift_of_a_model_without_a_policy_is_not_decided(stores: Any) -> None:
    await stores.policies.set(policy("q"), "", b"", AT)
    await stores.decide(drift("a1"), AT)
    assert [] == list((await stores.pipelines.list("p", (), 9, "")).items)
    await stores.policies.set(POLICY, "", b"", AT)
    assert [] == await decisions(stores), "a new policy does not decide earlier drift"
    await stores.decide(drift("a1"), AT)
    assert [Reason.STARTED] == [d.reason for d in await decisions(stores)]
    assert [] == await decisions(stores, PolicyName("q", "late"))


async def test_decisions_are_listed_newest_first_page_by_page(stores: Any) -> None:
    await stores.policies.set(policy(disabled=True), "", b"", AT)
    await stores.policies.set(policy("q"), "", b"", AT)
    for number in (3, 1, 4, 2, 5):
        await stores.decide(drift(f"a{number}", WINDOW_END + number * DAY), AT)
    for size in (1, 2, 5, 99):
        found = await decisions(stores, size=size)
        assert ["a5", "a2", "a4", "a1", "a3"] == [d.alert.rsplit("/", 1)[1] for d in found]
    token = (await stores.policies.decisions(NAME, 2, "")).next_page_token
    with pytest.raises(InvalidPageToken):
        await stores.policies.decisions(PolicyName("q", "late"), 2, token)


SCHEDULE = Schedule("0 3 * * *", "Europe/Berlin", Misfire.SKIP, timedelta(minutes=7), timedelta(minutes=3))
CONTINUOUS = Continuous(timedelta(hours=6), timedelta(hours=1), min_rows=100, daily_budget=3, new_rows=50)


async def test_policies_with_times_are_listed_with_their_newest_decisions(stores: Any) -> None:
    timed = policy(schedule=SCHEDULE, continuous=CONTINUOUS, ignore_drift=True)
    await stores.policies.set(timed, "", b"", AT)
    await stores.policies.set(policy("q"), "", b"", AT)
    await stores.policies.set(policy("r", schedule=SCHEDULE, disabled=True), "", b"", AT)
    assert timed == await stores.policies.get(NAME)
    assert [TimedPolicy(timed, AT, {})] == list(await stores.policies.timed())
    for days in (2, 1):
        due = Due(WINDOW_END + days * DAY)
        decided = await stores.policies.decide_time(NAME, Trigger.SCHEDULE, due, AT)
        assert (Trigger.SCHEDULE, due.time) == (decided.trigger, decided.event_time)
    newest = {Trigger.SCHEDULE: WINDOW_END + 2 * DAY}
    assert [TimedPolicy(timed, AT, newest)] == list(await stores.policies.timed())


async def test_a_time_is_decided_once_with_the_run_that_it_starts(stores: Any) -> None:
    await stores.policies.set(policy(schedule=SCHEDULE, continuous=CONTINUOUS), "", b"", AT)
    due = Due(WINDOW_END)
    found = await asyncio.gather(
        *(stores.policies.decide_time(NAME, Trigger.SCHEDULE, due, AT) for _ in range(8))
    )
    (decision,) = [one for one in found if one is not None]
    assert [decision] == await decisions(stores)
    (run,) = (await stores.pipelines.list("p", (), 9, "")).items
    assert (str(run.name), str(NAME), WINDOW_END, "") == (
        decision.pipeline_run,
        run.policy,
        run.event_time,
        run.cause_alert,
    )
    next_day = await stores.policies.decide_time(NAME, Trigger.SCHEDULE, Due(WINDOW_END + DAY), AT)
    assert Reason.RUN_ACTIVE == next_day.reason, "its own run"
    assert await stores.policies.decide_time(NAME, Trigger.CONTINUOUS, due, AT) is None, "it waits"
    await stores.pipelines.finish(run.name, JobState.SUCCEEDED, "", "", AT)
    window = await stores.policies.decide_time(NAME, Trigger.CONTINUOUS, due, AT)
    assert (True, WINDOW_END) == (window.started, window.event_time)
    continuous = (await stores.pipelines.list("p", (), 9, "")).items
    (spec,) = [one.spec for one in continuous if one.name != run.name]
    assert (True, 100) == (spec.warm_start_from_champion, spec.min_rows)
    assert await stores.policies.decide_time(PolicyName("q", "late"), Trigger.SCHEDULE, due, AT) is None


async def test_a_policy_that_is_set_again_loses_no_time(stores: Any) -> None:
    timed = policy(schedule=SCHEDULE)
    for days in range(3):
        await stores.policies.set(timed, f"set-{days}", b"", AT + days * DAY)
    assert [TimedPolicy(timed, AT, {})] == list(await stores.policies.timed())
    changed = policy(schedule=SCHEDULE, daily_budget=4)
    await stores.policies.set(changed, "", b"", AT + 3 * DAY)
    assert [TimedPolicy(changed, AT + 3 * DAY, {})] == list(await stores.policies.timed())


async def test_rows_of_windows_that_were_not_trained_on_count_again(stores: Any) -> None:
    policies, day = stores.policies, WINDOW_END.replace(hour=0)
    counting = Continuous(timedelta(hours=1), daily_budget=2, new_rows=50)
    await policies.set(policy(continuous=counting), "", b"", AT)
    starts = []
    for hour, trains in ((1, True), (2, False), (3, False), (4, True), (5, False)):
        window = Due(day + timedelta(hours=hour))
        decision = await policies.decide_time(NAME, Trigger.CONTINUOUS, window, AT)
        if hour == 5:
            assert Reason.BUDGET == decision.reason
            break
        name = PipelineRunName.parse(decision.pipeline_run)
        run = await stores.pipelines.get(name)
        source = ParseDict(dict(run.graph.step("new_rows").spec["spine"]), Spine()).source
        starts.append(source.start_time.ToDatetime(UTC))
        if trains:
            await stores.pipelines.set_fields(name, {"run": "projects/p/runs/r"})
        await stores.pipelines.finish(name, JobState.SUCCEEDED, "", "", AT)
    first = day + timedelta(hours=1)
    assert starts == [first - POLICY.history, first, first, first]


async def test_a_failed_run_does_not_consume_the_cooldown(stores: Any) -> None:
    await stores.policies.set(policy(cooldown=timedelta(days=7), daily_budget=2), "", b"", AT)
    await stores.decide(drift("a1"), AT)
    (run,) = (await stores.pipelines.list("p", (), 9, "")).items
    await stores.pipelines.finish(run.name, JobState.FAILED, "TRAINING_SET_FAILED", "", AT)
    await stores.decide(drift("a2", WINDOW_END + timedelta(hours=1)), AT)
    second = next(d.pipeline_run for d in await decisions(stores) if d.alert.endswith("a2"))
    await stores.pipelines.finish(PipelineRunName.parse(second), JobState.FAILED, "X", "", AT)
    await stores.decide(drift("a3", WINDOW_END + timedelta(hours=2)), AT)
    found = {d.alert.rsplit("/", 1)[1]: d.reason for d in await decisions(stores)}
    assert {"a1": Reason.STARTED, "a2": Reason.STARTED, "a3": Reason.BUDGET} == found


async def rerun_of(stores: Any, run: str, state: JobState, trained: bool = False) -> str:
    """Rerun a pipeline run by hand; the rerun ends with the state, if it is one."""
    former = await stores.pipelines.get(PipelineRunName.parse(run))
    again = rerun(former, PipelineRunName("p", f"{former.name.run}-again"), "")
    await stores.pipelines.create(again, f"rerun of {run}", run.encode(), AT)
    if trained:
        await stores.pipelines.set_fields(again.name, {"run": "projects/p/runs/again"})
    if state in ENDED:
        await stores.pipelines.finish(again.name, state, "", "", AT)
    return str(again.name)


@pytest.mark.parametrize(
    ("ends", "reason"),
    [
        ((JobState.SUCCEEDED,), Reason.COOLDOWN),
        ((JobState.FAILED, JobState.CANCELLED, JobState.SUCCEEDED), Reason.COOLDOWN),
        ((JobState.SUCCEEDED, JobState.FAILED), Reason.COOLDOWN),
        ((JobState.FAILED, JobState.LOST), Reason.STARTED),
        ((JobState.CANCELLED,), Reason.STARTED),
    ],
    ids=lambda value: None if isinstance(value, Reason) else "-".join(value).lower(),
)
async def test_a_rerun_that_succeeds_starts_the_cooldown_of_its_run(
    stores: Any, ends: tuple[JobState, ...], reason: Reason
) -> None:
    await stores.policies.set(policy(cooldown=timedelta(days=7), daily_budget=2), "", b"", AT)
    await stores.decide(drift("a1"), AT)
    (run,) = (await stores.pipelines.list("p", (), 9, "")).items
    await stores.pipelines.finish(run.name, JobState.FAILED, "TRAINING_SET_FAILED", "", AT)
    newest = str(run.name)
    for state in ends:
        newest = await rerun_of(stores, newest, state)
    await stores.decide(drift("a2", WINDOW_END + timedelta(hours=1)), AT)
    found = {d.alert.rsplit("/", 1)[1]: d.reason for d in await decisions(stores)}
    assert {"a1": Reason.STARTED, "a2": reason} == found, "a run and its reruns are one run of the budget"


async def test_a_schedule_does_not_run_beside_a_rerun_of_its_run(stores: Any) -> None:
    await stores.policies.set(policy(continuous=Continuous(timedelta(hours=1), daily_budget=9)), "", b"", AT)
    hours = [WINDOW_END.replace(hour=0) + timedelta(hours=n) for n in (1, 2, 3)]
    first = await stores.policies.decide_time(NAME, Trigger.CONTINUOUS, Due(hours[0]), AT)
    await stores.pipelines.finish(PipelineRunName.parse(first.pipeline_run), JobState.FAILED, "X", "", AT)
    again = await rerun_of(stores, first.pipeline_run, JobState.QUEUED)
    second = await stores.policies.decide_time(NAME, Trigger.CONTINUOUS, Due(hours[1]), AT)
    assert second.reason is Reason.RUN_ACTIVE
    await stores.pipelines.finish(PipelineRunName.parse(again), JobState.FAILED, "X", "", AT)
    third = await stores.policies.decide_time(NAME, Trigger.CONTINUOUS, Due(hours[2]), AT)
    assert third.reason is Reason.STARTED


async def test_a_window_that_a_rerun_trained_on_does_not_count_again(stores: Any) -> None:
    day = WINDOW_END.replace(hour=0)
    await stores.policies.set(
        policy(continuous=Continuous(timedelta(hours=1), daily_budget=2, new_rows=50)), "", b"", AT
    )
    window = Due(day + timedelta(hours=1))
    first = await stores.policies.decide_time(NAME, Trigger.CONTINUOUS, window, AT)
    await stores.pipelines.finish(PipelineRunName.parse(first.pipeline_run), JobState.FAILED, "X", "", AT)
    await rerun_of(stores, first.pipeline_run, JobState.SUCCEEDED, trained=True)
    second = await stores.policies.decide_time(NAME, Trigger.CONTINUOUS, Due(day + timedelta(hours=2)), AT)
    run = await stores.pipelines.get(PipelineRunName.parse(second.pipeline_run))
    source = ParseDict(dict(run.graph.step("new_rows").spec["spine"]), Spine()).source
    assert window.time == source.start_time.ToDatetime(UTC)
