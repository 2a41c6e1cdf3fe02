"""TrainerService over gRPC: conversion between protobuf and domain."""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct

from flywheel_common.grpc.error_details import from_rpc_error
from flywheel_job.outcome import Outcome
from flywheel_protos.registry.v1 import model_pb2
from flywheel_protos.trainer.v1 import retraining_pb2
from flywheel_protos.trainer.v1 import trainer_pb2 as pb
from flywheel_protos.types.v1 import job_pb2
from flywheel_trainer.jobs.attempt import Watch
from flywheel_trainer.jobs.job import JobName, JobState
from flywheel_trainer.pipelines.pipeline_run import STEPS, PipelineRunName
from flywheel_trainer.pipelines.ports import Ended
from tests.support.builders import trainer as build
from tests.support.builders.trainer import ARTIFACT, AT, SECOND, TRAINING_SET, WINDOW_END
from tests.support.builders.trainer_requests import (
    MODEL,
    POLICY,
    P,
    create_run,
    pipeline_spec,
    set_policy,
    submit_job,
    timestamp,
    train_spec,
)
from tests.support.servers.trainer import MemoryTrainer

DEFAULT_TEACHING = pb.TabularRecipe(task="binary", teacher_weight=0.5, teacher_temperature=2)
DEFAULT_LIMITS = pb.JobLimits(
    timeout=Duration(seconds=86_400), stall_timeout=Duration(seconds=1800), max_attempts=3
)


async def test_an_experiment_is_converted(trainer: MemoryTrainer) -> None:
    request = pb.CreateExperimentRequest(
        parent=P, experiment_id="late", experiment=pb.Experiment(description="why", tags={"a": "b"})
    )
    expected = pb.Experiment(
        name=f"{P}/experiments/late", description="why", tags={"a": "b"}, created_at=timestamp(AT)
    )
    assert expected == (await trainer.stub.CreateExperiment(request)).experiment
    listed = await trainer.stub.ListExperiments(pb.ListExperimentsRequest(parent=P))
    assert [expected] == list(listed.experiments)


async def test_a_run_is_converted_from_its_creation_to_its_end(trainer: MemoryTrainer) -> None:
    fields: dict[str, Any] = {
        "experiment": f"{P}/experiments/late",
        "tags": {"t": "ü"},
        "artifacts": [pb.RunArtifact(**asdict(ARTIFACT))],
        "code_version": "c0ffee",
        "environment": {"python": "3.11"},
        "training_set": TRAINING_SET,
        "job": "j",
        "display_name": "baseline",
        "notes": "# why",
    }
    request = pb.CreateRunRequest(
        parent=P, run=pb.Run(params={"lr": "0.1"}, **fields), lease=Duration(seconds=5)
    )
    expected = pb.Run(
        name=f"{P}/runs/run-n-000001",
        state=pb.RUN_STATE_RUNNING,
        params={"lr": "0.1"},
        started_at=timestamp(AT),
        lease=Duration(seconds=5),
        generation=1,
        **fields,
    )
    assert expected == (await trainer.stub.CreateRun(request)).run
    trainer.clock.advance(1)
    update = pb.UpdateRunRequest(
        name=expected.name, params={"seed": "7"}, tags={"x": "y"}, artifacts=[pb.RunArtifact(name="log")]
    )
    expected.params["seed"], expected.tags["x"] = "7", "y"
    expected.artifacts.add(name="log")
    assert expected == (await trainer.stub.UpdateRun(update)).run
    end = pb.UpdateRunRequest(name=expected.name, state=pb.RUN_STATE_FAILED, error_message="out of memory")
    expected.state, expected.error_message = pb.RUN_STATE_FAILED, "out of memory"
    expected.ended_at.CopyFrom(timestamp(AT + SECOND))
    assert expected == (await trainer.stub.UpdateRun(end)).run
    assert expected == (await trainer.stub.GetRun(pb.GetRunRequest(name=expected.name))).run


async def test_a_run_without_a_lease_has_the_default_lease(trainer: MemoryTrainer) -> None:
    assert Duration(seconds=60) == (await trainer.stub.CreateRun(create_run())).run.lease


async def test_metric_points_are_converted_in_columns(trainer: MemoryTrainer) -> None:
    name = (await trainer.stub.CreateRun(create_run())).run.name
    points = pb.LogMetricsRequest(
        run=name, keys=["loss", "loss", "auc"], steps=[1, 2, 1], values=[0.5, 0.25, 0.75], times=[7, 8, 9]
    )
    assert await trainer.stub.LogMetrics(points) == pb.LogMetricsResponse(stored_count=3)
    assert await trainer.stub.LogMetrics(points) == pb.LogMetricsResponse()
    other = pb.LogMetricsRequest(run=name, keys=["loss"] * 2, steps=[1, 2], values=[0.5, 9], times=[7, 8])
    assert await trainer.stub.LogMetrics(other) == pb.LogMetricsResponse(ignored_count=1)
    found = await trainer.stub.ListMetricPoints(pb.ListMetricPointsRequest(run=name))
    assert (["auc", "loss", "loss"], [1, 1, 2]) == (list(found.keys), list(found.steps))
    assert ([0.75, 0.5, 0.25], [9, 7, 8]) == (list(found.values), list(found.times))
    loss = await trainer.stub.ListMetricPoints(pb.ListMetricPointsRequest(run=name, key="loss"))
    assert [0.5, 0.25] == list(loss.values)
    run = (await trainer.stub.GetRun(pb.GetRunRequest(name=name))).run
    assert {"loss": 0.25, "auc": 0.75} == dict(run.metrics)


async def test_params_that_keep_their_first_value_are_named(trainer: MemoryTrainer) -> None:
    name = (await trainer.stub.CreateRun(create_run(params={"lr": "0.1", "seed": "7"}))).run.name
    params = {"lr": "9", "seed": "7", "epochs": "3", "a": "x"}
    first = await trainer.stub.UpdateRun(pb.UpdateRunRequest(name=name, params=params))
    assert {"lr": "0.1", "seed": "7", "epochs": "3", "a": "x"} == dict(first.run.params)
    assert ["lr"] == list(first.ignored_params)
    again = await trainer.stub.UpdateRun(pb.UpdateRunRequest(name=name, params={"epochs": "4", "a": "y"}))
    assert ["a", "epochs"] == list(again.ignored_params)


async def test_runs_are_filtered_and_ordered(trainer: MemoryTrainer) -> None:
    for lr, auc in (("0.1", 0.5), ("0.1", 0.75), ("0.2", 1.0)):
        name = (await trainer.stub.CreateRun(create_run(params={"lr": lr}))).run.name
        await trainer.stub.LogMetrics(
            pb.LogMetricsRequest(run=name, keys=["auc"], steps=[1], values=[auc], times=[1])
        )
    request = pb.ListRunsRequest(
        parent=P, filter="params.lr=0.1 AND metrics.auc>0.1", order_by="-metrics.auc"
    )
    found = (await trainer.stub.ListRuns(request)).runs
    assert [0.75, 0.5] == [run.metrics["auc"] for run in found]


async def test_a_job_is_converted_from_its_submission_to_its_end(trainer: MemoryTrainer) -> None:
    train = train_spec(experiment=f"{P}/experiments/late", tabular=pb.TabularRecipe(weight_column="weight"))
    train.tabular.batch_size, train.tabular.holdout_fraction = 1024, 0.2
    train.tabular.MergeFrom(DEFAULT_TEACHING)
    train.limits.CopyFrom(DEFAULT_LIMITS)
    expected = pb.Job(
        name=f"{P}/jobs/job-n-000001",
        kind="TRAIN",
        state=job_pb2.JOB_STATE_QUEUED,
        progress=job_pb2.JobProgress(),
        train=train,
        run=f"{P}/runs/run-n-000001",
        created_at=timestamp(AT),
        priority=3,
    )
    submitted = submit_job(priority=3, tabular=pb.TabularRecipe(weight_column="weight"))
    assert expected == (await trainer.stub.SubmitJob(submitted)).job
    run = (await trainer.stub.GetRun(pb.GetRunRequest(name=expected.run))).run
    assert (expected.name, TRAINING_SET) == (run.job, run.training_set)
    name = JobName.parse(expected.name)
    supervision = trainer.ports.supervision(1)
    await supervision.begin_attempt(name, AT)
    await supervision.mark_running(name, 1, AT + SECOND)
    progress = {"done": 1, "total": 3, "unit": "epoch", "message": "one"}
    await supervision.observe(name, 1, Watch(), progress)
    expected.progress.CopyFrom(job_pb2.JobProgress(done=1, total=3, unit="epoch", message="one"))
    expected.state = job_pb2.JOB_STATE_RUNNING
    expected.started_at.CopyFrom(timestamp(AT + SECOND))
    expected.attempts.add(
        number=1, engine_id="job-n-000001-1", created_at=timestamp(AT), started_at=timestamp(AT + SECOND)
    )
    expected.cancel_requested = True
    assert expected == (await trainer.stub.CancelJob(pb.CancelJobRequest(name=expected.name))).job
    outcome = Outcome(False, "JOB_CRASHED", "out of memory")
    await supervision.end(name, JobState.FAILED, outcome, AT + 2 * SECOND)
    expected.state = job_pb2.JOB_STATE_FAILED
    expected.error_reason, expected.error_message = "JOB_CRASHED", "out of memory"
    expected.ended_at.CopyFrom(timestamp(AT + 2 * SECOND))
    ended = pb.JobAttempt(
        error_reason="JOB_CRASHED", error_message="out of memory", ended_at=expected.ended_at
    )
    expected.attempts[0].MergeFrom(ended)
    assert expected == (await trainer.stub.GetJob(pb.GetJobRequest(name=expected.name))).job


async def test_unset_fields_of_a_training_job_become_defaults(trainer: MemoryTrainer) -> None:
    train = pb.TrainSpec(experiment="late", training_set=TRAINING_SET)
    job = (await trainer.stub.SubmitJob(pb.SubmitJobRequest(parent=P, job=pb.Job(train=train)))).job
    recipe = job.train.tabular
    assert ([64, 32], 10, 1024) == (list(recipe.hidden_sizes), recipe.epochs, recipe.batch_size)
    assert DEFAULT_LIMITS == job.train.limits
    assert (1e-3, 0.2, 1) == (recipe.learning_rate, recipe.holdout_fraction, job.train.workers)


async def test_a_pipeline_run_is_converted_from_its_start_to_its_end(trainer: MemoryTrainer) -> None:
    spec = pipeline_spec(
        threshold=0.25,
        fallback=model_pb2.Fallback(default_score=0.2),
        segment_keys=["origin", "carrier"],
        start_rollout=True,
    )
    spec.train.CopyFrom(train_spec(experiment=f"{P}/experiments/late"))
    spec.train.training_set = ""
    spec.train.tabular.batch_size, spec.train.tabular.holdout_fraction = 1024, 0.2
    spec.train.tabular.MergeFrom(DEFAULT_TEACHING)
    spec.train.limits.CopyFrom(DEFAULT_LIMITS)
    queued = job_pb2.JOB_STATE_QUEUED
    expected = pb.PipelineRun(
        name=f"{P}/pipelineRuns/pipe-n-000001",
        spec=spec,
        state=queued,
        steps=[
            pb.PipelineStep(step=step, kind=kind, needs=needs, state=queued)
            for step, kind, needs in zip(
                STEPS,
                ["training_set", "job", "compare", "register", "release", "rollout"],
                [
                    [],
                    ["training_set"],
                    ["train", "training_set"],
                    ["train", "training_set", "evaluate"],
                    ["register", "train"],
                    ["release"],
                ],
                strict=True,
            )
        ],
        created_at=timestamp(AT),
        event_time=timestamp(AT),
    )
    request = pb.StartPipelineRunRequest(parent=P, spec=spec)
    assert expected == (await trainer.stub.StartPipelineRun(request)).pipeline_run
    name, store = PipelineRunName.parse(expected.name), trainer.ports.pipelines
    await store.begin_step(name, "training_set", AT + SECOND)
    outputs = {
        "training_set": TRAINING_SET,
        "run": "r",
        "model_version": "v",
        "release": "l",
        "rollout": "o",
    }
    fields = outputs | {"gate_passed": True}
    outputs |= {"passed": True}
    ended = Ended(JobState.SUCCEEDED, TRAINING_SET, "7 rows", outputs)
    await store.end_step(name, "training_set", ended, AT + 2 * SECOND)
    cancel = pb.CancelPipelineRunRequest(name=expected.name)
    expected.MergeFrom(pb.PipelineRun(state=job_pb2.JOB_STATE_RUNNING, cancel_requested=True, **fields))
    expected.steps[0].MergeFrom(
        pb.PipelineStep(
            state=job_pb2.JOB_STATE_SUCCEEDED,
            started_at=timestamp(AT + SECOND),
            ended_at=timestamp(AT + 2 * SECOND),
            output=TRAINING_SET,
            message="7 rows",
            attempt=1,
            outputs=ParseDict(outputs, Struct()),
        )
    )
    assert expected == (await trainer.stub.CancelPipelineRun(cancel)).pipeline_run
    await store.finish(name, JobState.CANCELLED, "CANCELLED", "as requested", AT + 3 * SECOND)
    expected.state = job_pb2.JOB_STATE_CANCELLED
    expected.error_reason, expected.error_message = "CANCELLED", "as requested"
    expected.ended_at.CopyFrom(timestamp(AT + 3 * SECOND))
    for step in expected.steps[1:]:
        step.state, step.message = job_pb2.JOB_STATE_CANCELLED, "not run"
    found = await trainer.stub.GetPipelineRun(pb.GetPipelineRunRequest(name=expected.name))
    assert expected == found.pipeline_run


async def test_a_policy_and_its_decisions_are_converted(trainer: MemoryTrainer) -> None:
    request = set_policy(
        trigger_kinds=["DATA_DRIFT"],
        cooldown=Duration(seconds=60),
        daily_budget=3,
        history=Duration(seconds=120),
        dry_run=True,
    )
    stored = (await trainer.stub.SetRetrainingPolicy(request)).policy
    expected = pb.RetrainingPolicy()
    expected.CopyFrom(request.policy)
    expected.pipeline.train.CopyFrom(stored.pipeline.train)  # with the defaults of a training job
    assert expected == stored
    assert (
        stored == (await trainer.stub.GetRetrainingPolicy(pb.GetRetrainingPolicyRequest(name=POLICY))).policy
    )
    await trainer.policies.decide(build.drift("a1"), AT)
    decisions = await trainer.stub.ListRetrainingDecisions(pb.ListRetrainingDecisionsRequest(parent=POLICY))
    assert [
        pb.RetrainingDecision(
            alert=f"{P}/alerts/a1",
            model=MODEL,
            event_time=timestamp(WINDOW_END),
            reason="DRY_RUN",
            trigger="DRIFT",
        )
    ] == list(decisions.decisions)


async def test_the_times_of_a_policy_are_converted(trainer: MemoryTrainer) -> None:
    request = set_policy(
        ignore_drift=True,
        schedule=retraining_pb2.RetrainingSchedule(
            cron="0 3 * * *",
            time_zone="Europe/Berlin",
            misfire=retraining_pb2.MISFIRE_RULE_SKIP,
            misfire_grace=Duration(seconds=60),
            jitter=Duration(seconds=30),
        ),
        continuous=retraining_pb2.ContinuousRetraining(
            window=Duration(seconds=3600), delay=Duration(seconds=60), min_rows=7, daily_budget=3, new_rows=50
        ),
    )
    stored = (await trainer.stub.SetRetrainingPolicy(request)).policy
    assert request.policy.schedule == stored.schedule
    assert request.policy.continuous == stored.continuous
    assert stored.ignore_drift
    with pytest.raises(grpc.RpcError) as caught:
        await trainer.stub.SetRetrainingPolicy(
            set_policy(schedule=retraining_pb2.RetrainingSchedule(cron="0 0 30 2 *"))
        )
    assert "INVALID_POLICY" == from_rpc_error(caught.value).reason
    unset = set_policy(
        schedule=retraining_pb2.RetrainingSchedule(cron="0 3 * * *"),
        continuous=retraining_pb2.ContinuousRetraining(window=Duration(seconds=3600)),
    )
    policy = (await trainer.stub.SetRetrainingPolicy(unset)).policy
    assert ("UTC", 300, 0) == (
        policy.schedule.time_zone,
        policy.schedule.misfire_grace.seconds,
        policy.schedule.jitter.seconds,
    )
    assert (retraining_pb2.MISFIRE_RULE_LATEST, 24) == (
        policy.schedule.misfire,
        policy.continuous.daily_budget,
    )


async def test_a_decision_names_the_run_that_it_started(trainer: MemoryTrainer) -> None:
    await trainer.stub.SetRetrainingPolicy(set_policy())
    await trainer.policies.decide(build.drift("a1"), AT)
    request = pb.ListRetrainingDecisionsRequest(parent=POLICY)
    (decision,) = (await trainer.stub.ListRetrainingDecisions(request)).decisions
    (run,) = (await trainer.stub.ListPipelineRuns(pb.ListPipelineRunsRequest(parent=P))).pipeline_runs
    assert (True, "STARTED", run.name) == (decision.started, decision.reason, decision.pipeline_run)
    assert (f"{P}/alerts/a1", timestamp(WINDOW_END)) == (run.cause_alert, run.event_time)


async def test_unset_fields_of_a_policy_become_defaults(trainer: MemoryTrainer) -> None:
    policy = (await trainer.stub.SetRetrainingPolicy(set_policy())).policy
    assert timedelta(days=7) == policy.cooldown.ToTimedelta()
    assert timedelta(days=90) == policy.history.ToTimedelta()
    assert 1 == policy.daily_budget


async def test_a_lost_run_is_shown_as_lost(trainer: MemoryTrainer) -> None:
    name = (await trainer.stub.CreateRun(create_run())).run.name
    await trainer.ports.runs.expire(AT + 61 * SECOND, AT)
    run = (await trainer.stub.GetRun(pb.GetRunRequest(name=name))).run
    assert pb.RUN_STATE_LOST == run.state
