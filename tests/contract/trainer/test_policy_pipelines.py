"""Contract tests for policies whose triggers run stored pipelines, on stores of policies."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from flywheel_trainer.jobs.job import JobState
from flywheel_trainer.pipelines.definition import PipelineName
from flywheel_trainer.pipelines.graph import Graph, GraphStep
from flywheel_trainer.pipelines.pipeline_run import PipelineRun
from flywheel_trainer.policies.decision import Reason, Trigger
from flywheel_trainer.policies.policy import PolicyName
from flywheel_trainer.policies.schedule import Continuous, Due, Schedule
from flywheel_trainer.policies.stored_pipeline import StoredPipeline
from tests.support.builders.trainer import AT, DAY, WINDOW_END, drift, policy, score_graph

PIPELINE = PipelineName("p", "nightly")
NIGHTLY = StoredPipeline(str(PIPELINE), {"table": "s3://lake/tonight.parquet"})
NIGHT = datetime(2026, 3, 1, 2, tzinfo=UTC)
GRAPH = score_graph(table=None, scheduled_at=None)
POLICY = policy(schedule=Schedule("0 2 * * *", pipeline=NIGHTLY))
NAME = POLICY.name


async def prepare(stores: Any, wanted: Any = POLICY, graph: Graph = GRAPH) -> None:
    await stores.definitions.apply(PIPELINE, graph, "ada", AT)
    assert wanted == await stores.policies.set(wanted, "", b"", AT)


async def runs(stores: Any) -> list[PipelineRun]:
    """All runs, oldest first."""
    return list((await stores.pipelines.list("p", (), 99, "")).items)[::-1]


async def decide(stores: Any, time: datetime = NIGHT, trigger: Trigger = Trigger.SCHEDULE) -> Any:
    return await stores.policies.decide_time(NAME, trigger, Due(time), AT)


async def test_a_schedule_runs_its_pipeline_with_the_moment_as_parameter(stores: Any) -> None:
    await prepare(stores)
    assert POLICY == await stores.policies.get(NAME)
    decision = await decide(stores)
    assert (Reason.STARTED, True, "", "projects/p/models/late") == (
        decision.reason,
        decision.started,
        decision.message,
        decision.model,
    )
    (run,) = await runs(stores)
    assert (decision.pipeline_run, str(NAME), f"{PIPELINE}/versions/1", NIGHT, "", "") == (
        str(run.name),
        run.policy,
        run.pipeline,
        run.event_time,
        run.cause_alert,
        run.model,
    )
    given = {"table": "s3://lake/tonight.parquet", "scheduled_at": "2026-03-01T02:00:00Z"}
    assert given == run.params
    score = run.graph.step("score").spec["score"]
    assert ("s3://lake/tonight.parquet", "2026-03-01T02:00:00Z") == (score["table_uri"], score["as_of"])
    assert await decide(stores) is None, "a time is decided once"
    assert decision == await stores.policies.decision_of(NAME, decision.pipeline_run)


async def test_drift_and_windows_give_their_moments_to_the_pipeline(stores: Any) -> None:
    declared = dict.fromkeys(("event", "window_start", "window_end", "history_start"), "none")
    stored = StoredPipeline(str(PIPELINE))
    continuous = Continuous(timedelta(hours=6), pipeline=stored)
    both = policy(pipeline=None, drift_pipeline=stored, continuous=continuous)
    await prepare(stores, both, score_graph(**declared))
    await stores.decide(drift("a1"), AT)
    (first,) = await runs(stores)
    assert "projects/p/alerts/a1" == first.cause_alert
    assert first.params == {
        "event": "projects/p/alerts/a1",
        "window_start": "none",
        "window_end": "2013-06-01T12:00:00Z",
        "history_start": "2013-05-02T12:00:00Z",
    }
    decision = await decide(stores, WINDOW_END, Trigger.CONTINUOUS)
    assert Reason.STARTED == decision.reason, "a run of another trigger that trains no model is no obstacle"
    (second,) = [run for run in await runs(stores) if run.name != first.name]
    assert second.params == {
        "event": "none",
        "window_start": "2013-06-01T06:00:00Z",
        "window_end": "2013-06-01T12:00:00Z",
        "history_start": "2013-05-02T12:00:00Z",
    }


async def test_the_newest_version_runs_unless_the_policy_names_one(stores: Any) -> None:
    pinned = StoredPipeline(f"{PIPELINE}/versions/1", NIGHTLY.params)
    await prepare(stores)
    await stores.definitions.apply(PIPELINE, score_graph(table=None, scheduled_at=""), "ada", AT)
    await decide(stores)
    (newest,) = await runs(stores)
    await stores.pipelines.finish(newest.name, JobState.SUCCEEDED, "", "", AT)
    assert POLICY.schedule is not None
    await stores.policies.set(
        replace(POLICY, schedule=replace(POLICY.schedule, pipeline=pinned)), "", b"", AT
    )
    await decide(stores, NIGHT + DAY)
    found = {run.event_time: run.pipeline for run in await runs(stores)}
    assert {NIGHT: f"{PIPELINE}/versions/2", NIGHT + DAY: f"{PIPELINE}/versions/1"} == found


async def test_a_version_that_lacks_a_value_is_refused_with_the_reason(stores: Any) -> None:
    await prepare(stores)
    await stores.definitions.apply(PIPELINE, score_graph(table=None, region=None), "ada", AT)
    decision = await decide(stores)
    assert (Reason.PIPELINE_REFUSED, False, "") == (decision.reason, decision.started, decision.pipeline_run)
    assert "'region' has no default" in decision.message
    assert [decision] == list((await stores.policies.decisions(NAME, 9, "")).items)
    assert [] == await runs(stores)
    await stores.definitions.apply(PIPELINE, GRAPH, "ada", AT)
    assert await decide(stores) is None
    assert Reason.STARTED == (await decide(stores, NIGHT + DAY)).reason


async def test_a_pipeline_waits_for_its_own_run_and_not_for_training(stores: Any) -> None:
    await prepare(stores)
    await stores.decide(drift("a1"), AT)
    (training,) = await runs(stores)
    assert Reason.STARTED == (await decide(stores)).reason
    (scoring,) = [run for run in await runs(stores) if run.name != training.name]
    assert Reason.RUN_ACTIVE == (await decide(stores, NIGHT + DAY)).reason
    await stores.pipelines.finish(scoring.name, JobState.SUCCEEDED, "", "", AT)
    assert Reason.STARTED == (await decide(stores, NIGHT + 2 * DAY)).reason
    await stores.decide(drift("a2", WINDOW_END + 30 * DAY), AT)
    newest = (await stores.policies.decisions(NAME, 1, "")).items[0]
    assert (Reason.RUN_ACTIVE, Trigger.DRIFT) == (newest.reason, newest.trigger), "the model still trains"


async def test_a_pipeline_that_registers_the_model_waits_for_its_training(stores: Any) -> None:
    step = GraphStep("register", "register", {"model": "projects/p/models/late", "run": "projects/p/runs/r"})
    await prepare(stores, graph=Graph((*GRAPH.steps, step), GRAPH.params))
    await stores.decide(drift("a1"), AT)
    assert await decide(stores) is None
    (training,) = await runs(stores)
    await stores.pipelines.finish(training.name, JobState.FAILED, "X", "", AT)
    assert Reason.STARTED == (await decide(stores)).reason


async def test_a_trigger_that_was_taken_away_decides_nothing(stores: Any) -> None:
    await prepare(stores)
    assert await decide(stores, NIGHT, Trigger.CONTINUOUS) is None
    await stores.policies.set(policy(), "", b"", AT)
    assert await decide(stores) is None
    ignored = policy(pipeline=None, ignore_drift=True, schedule=POLICY.schedule)
    await stores.policies.set(ignored, "", b"", AT)
    await stores.decide(drift("a1"), AT)
    assert [Reason.DISABLED] == [d.reason for d in (await stores.policies.decisions(NAME, 9, "")).items]


async def test_policies_are_listed_by_name_page_by_page(stores: Any) -> None:
    named = [replace(policy(), name=PolicyName("p", name)) for name in ("c", "a", "b")]
    for one in (*named, policy("q")):
        await stores.policies.set(one, "", b"", AT)
    found, token = [], ""
    while True:
        page = await stores.policies.list("p", 2, token)
        found += page.items
        token = page.next_page_token
        if not token:
            break
    assert [named[1], named[2], named[0]] == found
