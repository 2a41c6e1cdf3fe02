"""The RPCs of stored pipelines: conversion, status codes, and what they store."""

from __future__ import annotations

import asyncio
import math
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import ParseDict

import flywheel as fw
from flywheel.connection import Service
from flywheel.errors import JobFailedError
from flywheel_common.grpc.error_details import from_rpc_error
from flywheel_protos.trainer.v1 import pipeline_graph_pb2 as graph_pb
from flywheel_protos.trainer.v1 import trainer_pb2 as pb
from flywheel_protos.types.v1 import job_pb2
from flywheel_trainer.jobs.job import JobState
from flywheel_trainer.pipelines.pipeline_run import PipelineRunName
from tests.support.builders.trainer import AT
from tests.support.builders.trainer_requests import MODEL, P, start_pipeline
from tests.support.servers.trainer import MemoryTrainer

TRAIN = {"job": {"train": {"experiment": "late"}}}
GRAPH: dict[str, Any] = {
    "params": {"end": None, "rates": [0.1, 0.2]},
    "steps": [
        {
            "id": "data",
            "training_set": {
                "feature_set": f"{P}/featureSets/late",
                "spine": {"source": {"source": f"{P}/sources/landed", "label": "late"}},
            },
            "inputs": {"spine.source.end_time": {"param": "end"}},
            "cache": True,
        },
        {
            "id": "train",
            "job": {"train": {"experiment": f"{P}/experiments/late", "tabular": {"epochs": 3}}},
            "inputs": {
                "train.training_set": {"step": {"step": "data", "output": "training_set"}},
                "train.tabular.learning_rate": {"item": {}},
            },
            "for_each": {"param": "rates"},
            "retries": 1,
            "retry_delay": "5s",
            "timeout": "60s",
        },
        {"id": "best", "select": {"step": "train", "output": "metrics.val_loss", "smallest": True}},
        {
            "id": "approve",
            "approval": {"message": "Register it?"},
            "after": ["best"],
            "conditions": [
                {"left": {"step": "best", "output": "metrics.auc"}, "operator": ">=", "right": 0.7}
            ],
        },
        {
            "id": "register",
            "register": {"model": MODEL},
            "inputs": {"run": {"step": {"step": "best", "output": "run"}}},
            "after": ["approve"],
        },
    ],
}


def graph(**changes: Any) -> graph_pb.PipelineGraph:
    return ParseDict({**GRAPH, **changes}, graph_pb.PipelineGraph())


def apply(graph: graph_pb.PipelineGraph) -> graph_pb.ApplyPipelineRequest:
    return graph_pb.ApplyPipelineRequest(parent=P, pipeline_id="weekly", graph=graph)


async def reason(call: Any) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        await call
    return from_rpc_error(caught.value).reason


async def test_a_graph_is_stored_and_read_back(trainer: MemoryTrainer) -> None:
    stub = trainer.stub
    applied = await stub.ApplyPipeline(apply(graph()))
    assert (f"{P}/pipelines/weekly/versions/1", True) == (applied.pipeline.name, applied.created)
    found = (await stub.GetPipeline(graph_pb.GetPipelineRequest(name=f"{P}/pipelines/weekly"))).pipeline
    assert applied.pipeline == found
    assert graph() == found.graph
    assert not (await stub.ApplyPipeline(apply(found.graph))).created
    listed = await stub.ListPipelines(graph_pb.ListPipelinesRequest(parent=P))
    assert [found] == list(listed.pipelines)


async def test_a_fan_out_over_an_output_has_twenty_instances_by_default(trainer: MemoryTrainer) -> None:
    data, train, *_ = graph().steps
    train.for_each.Clear()
    train.for_each.output.CopyFrom(graph_pb.StepOutput(step=data.id, output="categories.v__c"))
    given = graph_pb.PipelineGraph(steps=[data, train], params=graph().params)
    applied = await trainer.stub.ApplyPipeline(apply(given))
    stored = {step.id: step for step in applied.pipeline.graph.steps}
    each = stored[train.id].for_each
    assert (train.for_each.output, 20) == (each.output, each.at_most)
    assert not (await trainer.stub.ApplyPipeline(apply(applied.pipeline.graph))).created
    request = pb.StartPipelineRunRequest(parent=P, pipeline=f"{P}/pipelines/weekly")
    request.params["end"] = "2013-06-01T00:00:00Z"
    started = await trainer.stub.StartPipelineRun(request)
    needs = {step.step: list(step.needs) for step in started.pipeline_run.steps}
    assert needs == {data.id: [], **{f"{train.id}[{i}]": [data.id] for i in range(20)}}


async def test_a_run_has_a_step_for_each_instance(trainer: MemoryTrainer) -> None:
    stub = trainer.stub
    await stub.ApplyPipeline(apply(graph()))
    request = pb.StartPipelineRunRequest(parent=P, pipeline=f"{P}/pipelines/weekly", request_id="once")
    assert "MISSING_STEP_INPUT" == await reason(stub.StartPipelineRun(request))
    request.params["end"] = "2013-06-01T00:00:00Z"
    run = (await stub.StartPipelineRun(request)).pipeline_run
    assert run == (await stub.StartPipelineRun(request)).pipeline_run
    assert ["data", "train[0]", "train[1]", "best", "approve", "register"] == [s.step for s in run.steps]
    assert ["train[0]", "train[1]"] == list(run.steps[3].needs)
    assert (f"{P}/pipelines/weekly/versions/1", "2013-06-01T00:00:00Z") == (run.pipeline, run.params["end"])
    stored = await trainer.ports.pipelines.get(PipelineRunName.parse(run.name))
    assert stored is not None
    assert MODEL == stored.model
    assert 0.2 == stored.graph.step("train[1]").spec["train"]["tabular"]["learning_rate"]
    assert "2013-06-01T00:00:00Z" == stored.graph.step("data").spec["spine"]["source"]["end_time"]
    assert "PIPELINE_RUN_ACTIVE" == await reason(
        stub.RerunPipelineRun(pb.RerunPipelineRunRequest(name=run.name))
    )
    await trainer.ports.pipelines.finish(PipelineRunName.parse(run.name), JobState.CANCELLED, "", "", AT)
    again = pb.RerunPipelineRunRequest(name=run.name, request_id="again")
    rerun = (await stub.RerunPipelineRun(again)).pipeline_run
    assert rerun == (await stub.RerunPipelineRun(again)).pipeline_run
    assert (run.name, job_pb2.JOB_STATE_QUEUED) == (rerun.rerun_of, rerun.state)


async def test_a_run_has_one_source(trainer: MemoryTrainer) -> None:
    await trainer.stub.ApplyPipeline(apply(graph()))
    both = start_pipeline()
    both.pipeline = f"{P}/pipelines/weekly"
    assert "INVALID_SPEC" == await reason(trainer.stub.StartPipelineRun(both))
    params = start_pipeline()
    params.params["end"] = "x"
    assert "INVALID_SPEC" == await reason(trainer.stub.StartPipelineRun(params))


async def test_a_repeated_backfill_runs_what_has_not_succeeded(trainer: MemoryTrainer) -> None:
    inputs = {"message": {"param": "start"}, "x": {"param": "end"}}
    steps = [{"id": "ok", "approval": {}, "inputs": inputs}]
    await trainer.stub.ApplyPipeline(apply(graph(steps=steps, params={"start": None, "end": None})))
    client = fw.Client("p")
    client.trainer = Service(trainer.stub)
    store = trainer.ports.pipelines
    outcomes = iter(["SUCCEEDED", "FAILED", "SUCCEEDED", "SUCCEEDED"])

    async def work() -> None:
        while True:
            for name in await store.unfinished():
                await store.finish(name, JobState(next(outcomes)), "X", "why", AT)
            await asyncio.sleep(0.01)

    begin, day = datetime(2013, 1, 1, tzinfo=UTC), timedelta(days=1)
    worker = asyncio.create_task(work())
    with pytest.raises(JobFailedError):
        await client.backfill("weekly", begin, begin + 3 * day, day)
    ended = await client.backfill("weekly", begin, begin + 3 * day, day)
    worker.cancel()
    assert ["2013-01-01", "2013-01-02", "2013-01-03"] == [run.params["start"][:10] for run in ended]
    runs = (await trainer.stub.ListPipelineRuns(pb.ListPipelineRunsRequest(parent=P))).pipeline_runs
    assert ["2013-01-03", "2013-01-02", "2013-01-02", "2013-01-01"] == [r.params["start"][:10] for r in runs]


async def test_a_backfill_runs_each_interval_once_for_each_value(trainer: MemoryTrainer) -> None:
    name = "weekly" + "-long" * 11
    inputs = {"message": {"param": "start"}, "x": {"param": "end"}, "y": {"param": "region"}}
    steps = [{"id": "ok", "approval": {}, "inputs": inputs}]
    params = {"start": None, "end": None, "region": "eu", "n": 1}
    request = graph_pb.ApplyPipelineRequest(
        parent=P, pipeline_id=name, graph=graph(steps=steps, params=params)
    )
    version = (await trainer.stub.ApplyPipeline(request)).pipeline.name
    client = fw.Client("p")
    client.trainer = Service(trainer.stub)
    store = trainer.ports.pipelines

    async def work() -> None:
        while True:
            for unfinished in await store.unfinished():
                await store.finish(unfinished, JobState.SUCCEEDED, "", "", AT)
            await asyncio.sleep(0.01)

    begin, day = datetime(2013, 1, 1, tzinfo=UTC), timedelta(days=1)
    one = {"start": "2013-01-01T00:00:00Z", "end": "2013-01-02T00:00:00Z", "region": "us"}
    by_hand = await client.run_pipeline(version, one)
    worker = asyncio.create_task(work())
    for region, count in ((None, 3), ("us", 5), ("eu", 5), (None, 5)):
        given = {"region": region, "n": 1} if region else {}
        ended = await client.backfill(name, begin, begin + 3 * day, day, params=given)
        assert [region or "eu"] * 3 == [run.params["region"] for run in ended]
        assert (by_hand.name == ended[0].name) == (region == "us"), "it counts although it is no backfill"
        listed = pb.ListPipelineRunsRequest(parent=P, filter=f"pipeline={version}")
        assert count + 1 == len((await trainer.stub.ListPipelineRuns(listed)).pipeline_runs)
    worker.cancel()


async def test_every_kind_of_job_can_be_a_step(trainer: MemoryTrainer) -> None:
    tuning = fw.TuneJob(
        pb.TrainSpec(experiment="late"),
        {"learning_rate": fw.FloatRange(1e-4, 1e-1)},
        minimize="val_loss",
        max_trials=4,
    )

    @fw.pipeline("jobs")
    def jobs(p: fw.PipelineBuilder) -> None:
        tuned = p.tune("tune", tuning, data="t")
        score = fw.ScoreJob("late/releases/1", "s3://bucket/tonight/", "late")
        p.score("score", score, after=[tuned])
        small = p.export("export", fw.ExportJob("late", format="INT8_DYNAMIC"), trained=tuned, data="t")
        registered = p.register("register", model="late", trained=small)
        checked = fw.EvaluateJob("late", slices=("origin",), record_evidence=True)
        p.evaluate("evaluate", checked, registered=registered, data="t")

    compiled = fw.compile_pipeline(jobs, "p")
    request = graph_pb.ApplyPipelineRequest(parent=P, pipeline_id="jobs", graph=compiled.graph)
    assert (await trainer.stub.ApplyPipeline(request)).created
    steps = {step.id: step for step in compiled.graph.steps}
    assert "best_run" == steps["export"].inputs["export.run"].step.output
    assert "model_version" == steps["evaluate"].inputs["evaluate.model_version"].step.output
    assert f"{P}/trainingSets/t" == steps["evaluate"].job["evaluate"]["training_set"]


async def test_a_step_that_waits_is_shown_and_approved(trainer: MemoryTrainer) -> None:
    stub = trainer.stub
    await stub.ApplyPipeline(apply(graph(steps=[{"id": "ok", "approval": {"message": "Go?"}}], params={})))
    start = pb.StartPipelineRunRequest(parent=P, pipeline=f"{P}/pipelines/weekly")
    name = (await stub.StartPipelineRun(start)).pipeline_run.name
    approve = pb.ApprovePipelineStepRequest(name=name, step="ok", approved=True, reason="why not")
    assert "STEP_NOT_WAITING" == await reason(stub.ApprovePipelineStep(approve))
    await trainer.ports.pipelines.begin_step(PipelineRunName.parse(name), "ok", AT)
    (step,) = (await stub.GetPipelineRun(pb.GetPipelineRunRequest(name=name))).pipeline_run.steps
    assert (True, "Go?") == (step.waits_for_approval, step.message)
    (step,) = (await stub.ApprovePipelineStep(approve)).pipeline_run.steps
    assert not step.waits_for_approval


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([], "INVALID_PIPELINE"),
        ([{"id": "a"}], "UNKNOWN_STEP_KIND"),
        ([{"id": "a", "approval": {}, "after": ["a"]}], "PIPELINE_CYCLE"),
        ([{"id": "a", "approval": {}, "after": ["b"]}], "MISSING_STEP_INPUT"),
        ([{"id": "a", "register": {"model": MODEL}}], "MISSING_STEP_INPUT"),
        ([{"id": "a", "job": {}}], "INVALID_SPEC"),
        ([{"id": "a", "job": {"train": {"epoch": 3}}}], "INVALID_SPEC"),
        ([{"id": "a", "job": {"train": {"experiment": "late"}}}], "INVALID_SPEC"),
        ([{"id": "a", "approval": {}, "inputs": {"x": {}}}], "MISSING_STEP_INPUT"),
        ([{"id": "a", **TRAIN, "inputs": {"train.training_set": {"param": "name"}}}], ""),
        ([{"id": "a", **TRAIN, "inputs": {"train.training_sets": {"param": "name"}}}], "INVALID_SPEC"),
        ([{"id": "a", **TRAIN, "inputs": {"train.limits.x.y": {"param": "name"}}}], "INVALID_SPEC"),
    ],
)
async def test_a_wrong_graph_is_refused(trainer: MemoryTrainer, steps: Any, expected: str) -> None:
    request = apply(graph(steps=steps, params={"name": None}))
    if not expected:
        assert (await trainer.stub.ApplyPipeline(request)).created
        return
    assert expected == await reason(trainer.stub.ApplyPipeline(request))
    read = graph_pb.GetPipelineRequest(name=f"{P}/pipelines/weekly")
    assert "UNKNOWN_PIPELINE" == await reason(trainer.stub.GetPipeline(read))


async def test_numbers_that_are_not_finite_are_refused(trainer: MemoryTrainer) -> None:
    wrong = graph()
    wrong.params["rates"].list_value.values.add(number_value=math.nan)
    assert "INVALID_PIPELINE" == await reason(trainer.stub.ApplyPipeline(apply(wrong)))
    wrong = graph()
    wrong.steps[1].job["train"] = math.inf
    assert "INVALID_PIPELINE" == await reason(trainer.stub.ApplyPipeline(apply(wrong)))
    wrong = graph()
    wrong.steps[4].register.metrics["auc"] = math.nan
    assert "INVALID_SPEC" == await reason(trainer.stub.ApplyPipeline(apply(wrong)))
    await trainer.stub.ApplyPipeline(apply(graph()))
    start = pb.StartPipelineRunRequest(parent=P, pipeline=f"{P}/pipelines/weekly")
    start.params["end"] = math.nan
    assert "INVALID_PIPELINE" == await reason(trainer.stub.StartPipelineRun(start))


async def test_a_duration_below_its_limit_is_refused(trainer: MemoryTrainer) -> None:
    wrong = graph()
    wrong.steps[1].timeout.CopyFrom(Duration(nanos=1))
    assert "INVALID_PIPELINE" == await reason(trainer.stub.ApplyPipeline(apply(wrong)))
