"""TrainerService over gRPC: status codes and reasons, idempotency keys, paging, streams."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from flywheel_common.grpc.error_details import from_rpc_error
from flywheel_job.outcome import Outcome
from flywheel_protos.trainer.v1 import trainer_pb2 as pb
from flywheel_protos.types.v1 import job_pb2
from flywheel_trainer.jobs.job import JobName, JobState
from flywheel_trainer.jobs.resources import Node
from flywheel_trainer.pipelines.pipeline_run import PipelineRunName
from tests.support.builders import trainer as build
from tests.support.builders.trainer import AT
from tests.support.builders.trainer_requests import (
    MODEL,
    POLICY,
    P,
    create_run,
    set_policy,
    start_pipeline,
    submit_job,
)
from tests.support.servers.trainer import MemoryTrainer

NO_RUN, NO_JOB, NO_PIPELINE = f"{P}/runs/none", f"{P}/jobs/none", f"{P}/pipelineRuns/none"


async def failure(call: Any) -> tuple[str, str]:
    """Status code and reason of a failed call."""
    with pytest.raises(grpc.RpcError) as caught:
        await call
    error = from_rpc_error(caught.value)
    return error.code.name, error.reason


@pytest.mark.parametrize(
    ("method", "request_message", "failed_with"),
    [
        (
            "CreateExperiment",
            pb.CreateExperimentRequest(parent=P, experiment_id="late"),
            "ALREADY_EXISTS EXPERIMENT_EXISTS",
        ),
        (
            "CreateExperiment",
            pb.CreateExperimentRequest(parent=P, experiment_id="A b"),
            "INVALID_ARGUMENT INVALID_ID",
        ),
        (
            "CreateRun",
            pb.CreateRunRequest(parent=P, run=pb.Run(experiment="none")),
            "NOT_FOUND UNKNOWN_EXPERIMENT",
        ),
        (
            "CreateRun",
            pb.CreateRunRequest(parent=P, run=pb.Run(experiment="late"), lease=Duration(nanos=1)),
            "INVALID_ARGUMENT INVALID_LEASE",
        ),
        ("GetRun", pb.GetRunRequest(name=NO_RUN), "NOT_FOUND UNKNOWN_RUN"),
        ("GetRun", pb.GetRunRequest(name="none"), "INVALID_ARGUMENT INVALID_NAME"),
        ("ListRuns", pb.ListRunsRequest(parent=P, filter="auc>1"), "INVALID_ARGUMENT INVALID_FILTER"),
        ("ListRuns", pb.ListRunsRequest(parent=P, order_by="auc"), "INVALID_ARGUMENT INVALID_ORDER"),
        ("ListRuns", pb.ListRunsRequest(parent=P, page_size=-1), "INVALID_ARGUMENT INVALID_PAGE_SIZE"),
        ("LogMetrics", pb.LogMetricsRequest(run=NO_RUN), "NOT_FOUND UNKNOWN_RUN"),
        ("LogMetrics", pb.LogMetricsRequest(run=NO_RUN, keys=["a"]), "INVALID_ARGUMENT UNEQUAL_COLUMNS"),
        (
            "LogMetrics",
            pb.LogMetricsRequest(run=NO_RUN, keys=["?"], steps=[1], values=[1], times=[1]),
            "INVALID_ARGUMENT INVALID_METRIC_KEY",
        ),
        ("ListMetricPoints", pb.ListMetricPointsRequest(run=NO_RUN), "NOT_FOUND UNKNOWN_RUN"),
        ("UpdateRun", pb.UpdateRunRequest(name=NO_RUN), "NOT_FOUND UNKNOWN_RUN"),
        (
            "UpdateRun",
            pb.UpdateRunRequest(name=NO_RUN, state=pb.RUN_STATE_LOST),
            "INVALID_ARGUMENT INVALID_STATE",
        ),
        ("SubmitJob", submit_job(training_set=f"{P}/trainingSets/none"), "NOT_FOUND UNKNOWN_TRAINING_SET"),
        ("SubmitJob", submit_job(experiment="none"), "NOT_FOUND UNKNOWN_EXPERIMENT"),
        ("SubmitJob", submit_job(tabular=pb.TabularRecipe(dropout=1.5)), "INVALID_ARGUMENT INVALID_SPEC"),
        ("SubmitJob", submit_job(workers=101), "INVALID_ARGUMENT INVALID_SPEC"),
        (
            "SubmitJob",
            submit_job(tabular=pb.TabularRecipe(weight_column="none")),
            "INVALID_ARGUMENT INVALID_SPEC",
        ),
        (
            "SubmitJob",
            submit_job(tabular=pb.TabularRecipe(warm_start=f"{MODEL}/versions/9")),
            "NOT_FOUND UNKNOWN_MODEL_VERSION",
        ),
        ("ListJobs", pb.ListJobsRequest(parent=P, filter="color=red"), "INVALID_ARGUMENT INVALID_FILTER"),
        ("ListJobs", pb.ListJobsRequest(parent=P, filter="state=DONE"), "INVALID_ARGUMENT INVALID_FILTER"),
        (
            "ListPipelineRuns",
            pb.ListPipelineRunsRequest(parent=P, filter="color=red"),
            "INVALID_ARGUMENT INVALID_FILTER",
        ),
        (
            "ListPipelineRuns",
            pb.ListPipelineRunsRequest(parent=P, filter="state=DONE"),
            "INVALID_ARGUMENT INVALID_FILTER",
        ),
        ("GetJob", pb.GetJobRequest(name=NO_JOB), "NOT_FOUND UNKNOWN_JOB"),
        ("CancelJob", pb.CancelJobRequest(name=NO_JOB), "NOT_FOUND UNKNOWN_JOB"),
        ("StartPipelineRun", start_pipeline(threshold=2.0), "INVALID_ARGUMENT INVALID_SPEC"),
        ("StartPipelineRun", pb.StartPipelineRunRequest(parent=P), "INVALID_ARGUMENT INVALID_SPEC"),
        ("GetPipelineRun", pb.GetPipelineRunRequest(name=NO_PIPELINE), "NOT_FOUND UNKNOWN_PIPELINE_RUN"),
        (
            "CancelPipelineRun",
            pb.CancelPipelineRunRequest(name=NO_PIPELINE),
            "NOT_FOUND UNKNOWN_PIPELINE_RUN",
        ),
        (
            "SetRetrainingPolicy",
            set_policy(trigger_kinds=["DATA_QUALITY"]),
            "INVALID_ARGUMENT INVALID_POLICY",
        ),
        (
            "SetRetrainingPolicy",
            set_policy(name=f"{P}/retrainingPolicies/other"),
            "INVALID_ARGUMENT INVALID_POLICY",
        ),
        ("GetRetrainingPolicy", pb.GetRetrainingPolicyRequest(name=POLICY), "NOT_FOUND UNKNOWN_POLICY"),
        (
            "ListRetrainingDecisions",
            pb.ListRetrainingDecisionsRequest(parent=POLICY),
            "NOT_FOUND UNKNOWN_POLICY",
        ),
    ],
)
async def test_a_rejected_request_has_its_status_code_and_reason(
    trainer: MemoryTrainer, method: str, request_message: Any, failed_with: str
) -> None:
    assert failed_with == " ".join(await failure(getattr(trainer.stub, method)(request_message)))


async def test_ended_resources_are_failed_preconditions(trainer: MemoryTrainer) -> None:
    stub = trainer.stub
    run = (await stub.CreateRun(create_run())).run.name
    await stub.UpdateRun(pb.UpdateRunRequest(name=run, state=pb.RUN_STATE_SUCCEEDED))
    job = (await stub.SubmitJob(submit_job())).job.name
    await trainer.ports.supervision(1).end(JobName.parse(job), JobState.CANCELLED, Outcome(False), AT)
    pipeline = (await stub.StartPipelineRun(start_pipeline())).pipeline_run.name
    name = PipelineRunName.parse(pipeline)
    await trainer.ports.pipelines.finish(name, JobState.CANCELLED, "", "", AT)
    calls = {
        "RUN_ENDED": stub.UpdateRun(pb.UpdateRunRequest(name=run)),
        "JOB_ENDED": stub.CancelJob(pb.CancelJobRequest(name=job)),
        "PIPELINE_RUN_ENDED": stub.CancelPipelineRun(pb.CancelPipelineRunRequest(name=pipeline)),
    }
    for reason, call in calls.items():
        assert ("FAILED_PRECONDITION", reason) == await failure(call)


async def test_an_unavailable_feature_service_is_named(trainer: MemoryTrainer) -> None:
    trainer.feature.down = True
    assert ("UNAVAILABLE", "FEATURE_UNAVAILABLE") == await failure(trainer.stub.SubmitJob(submit_job()))
    assert not (await trainer.stub.ListJobs(pb.ListJobsRequest(parent=P))).jobs


@pytest.mark.parametrize(
    ("method", "first", "other"),
    [
        ("CreateRun", create_run("once"), create_run("once", tags={"a": "b"})),
        ("SubmitJob", submit_job("once"), submit_job("once", priority=1)),
        ("StartPipelineRun", start_pipeline("once"), start_pipeline("once", threshold=0.5)),
        ("SetRetrainingPolicy", set_policy("once"), set_policy("once", dry_run=True)),
    ],
)
async def test_a_repeated_request_gets_the_first_response(
    trainer: MemoryTrainer, method: str, first: Any, other: Any
) -> None:
    call: Callable[[Any], Any] = getattr(trainer.stub, method)
    response = await call(first)
    trainer.clock.advance(1)
    assert response == await call(first)
    assert ("INVALID_ARGUMENT", "REQUEST_ID_REUSED") == await failure(call(other))


async def test_a_repeated_experiment_request_with_another_body_fails(trainer: MemoryTrainer) -> None:
    request = pb.CreateExperimentRequest(parent=P, experiment_id="other", request_id="once")
    created = await trainer.stub.CreateExperiment(request)
    assert created == await trainer.stub.CreateExperiment(request)
    request.experiment_id = "third"
    assert ("INVALID_ARGUMENT", "REQUEST_ID_REUSED") == await failure(trainer.stub.CreateExperiment(request))


async def test_a_repeated_cancel_request_succeeds_after_the_end(trainer: MemoryTrainer) -> None:
    stub, ports = trainer.stub, trainer.ports
    jobs = [(await stub.SubmitJob(submit_job())).job.name for _ in range(2)]
    runs = [(await stub.StartPipelineRun(start_pipeline())).pipeline_run.name for _ in range(2)]
    cancel_job = pb.CancelJobRequest(name=jobs[0], request_id="once")
    cancel_run = pb.CancelPipelineRunRequest(name=runs[0], request_id="once")
    await stub.CancelJob(cancel_job)
    await stub.CancelPipelineRun(cancel_run)
    await ports.supervision(1).end(JobName.parse(jobs[0]), JobState.CANCELLED, Outcome(False), AT)
    await ports.pipelines.finish(PipelineRunName.parse(runs[0]), JobState.CANCELLED, "", "", AT)
    assert job_pb2.JOB_STATE_CANCELLED == (await stub.CancelJob(cancel_job)).job.state
    assert job_pb2.JOB_STATE_CANCELLED == (await stub.CancelPipelineRun(cancel_run)).pipeline_run.state
    cancel_job.name, cancel_run.name = jobs[1], runs[1]
    for call in (stub.CancelJob(cancel_job), stub.CancelPipelineRun(cancel_run)):
        assert ("INVALID_ARGUMENT", "REQUEST_ID_REUSED") == await failure(call)


async def test_lists_are_read_page_by_page(trainer: MemoryTrainer) -> None:
    stub = trainer.stub
    for number in range(3):
        await stub.CreateExperiment(pb.CreateExperimentRequest(parent=P, experiment_id=f"e{number}"))
        await stub.SubmitJob(submit_job())
        await stub.StartPipelineRun(start_pipeline())
    await stub.SetRetrainingPolicy(set_policy(disabled=True))
    for number in range(3):
        await trainer.policies.decide(build.drift(f"a{number}"), AT)
    run = (await stub.ListRuns(pb.ListRunsRequest(parent=P, page_size=1))).runs[0].name
    points = pb.LogMetricsRequest(run=run, keys=["a"] * 3, steps=[1, 2, 3], values=[0] * 3, times=[0] * 3)
    await stub.LogMetrics(points)
    for method, request, field, total in (
        ("ListExperiments", pb.ListExperimentsRequest(parent=P), "experiments", 4),
        ("ListRuns", pb.ListRunsRequest(parent=P), "runs", 3),
        ("ListRuns", pb.ListRunsRequest(parent=P, order_by="metrics.a"), "runs", 3),
        ("ListMetricPoints", pb.ListMetricPointsRequest(run=run), "steps", 3),
        ("ListJobs", pb.ListJobsRequest(parent=P), "jobs", 3),
        ("ListPipelineRuns", pb.ListPipelineRunsRequest(parent=P), "pipeline_runs", 3),
        ("ListRetrainingDecisions", pb.ListRetrainingDecisionsRequest(parent=POLICY), "decisions", 3),
    ):
        call = getattr(stub, method)
        everything = list(getattr(await call(request), field))
        request.page_size, found = 2, []
        first = await call(request)
        found += getattr(first, field)
        request.page_token = first.next_page_token
        second = await call(request)
        found += getattr(second, field)
        assert (everything, total, 2, "") == (
            found,
            len(found),
            len(getattr(first, field)),
            second.next_page_token,
        )
        request.page_token = "?"
        assert ("INVALID_ARGUMENT", "INVALID_PAGE_TOKEN") == await failure(call(request))


async def test_jobs_and_pipeline_runs_are_filtered(trainer: MemoryTrainer) -> None:
    stub = trainer.stub
    jobs = [(await stub.SubmitJob(submit_job())).job.name for _ in range(2)]
    runs = [(await stub.StartPipelineRun(start_pipeline())).pipeline_run.name for _ in range(2)]
    await trainer.ports.supervision(1).end(JobName.parse(jobs[0]), JobState.CANCELLED, Outcome(False), AT)
    await trainer.ports.pipelines.finish(PipelineRunName.parse(runs[1]), JobState.CANCELLED, "", "", AT)
    for state, job, run in (("CANCELLED", jobs[0], runs[1]), ("QUEUED", jobs[1], runs[0])):
        listed = (await stub.ListJobs(pb.ListJobsRequest(parent=P, filter=f"state={state}"))).jobs
        assert [job] == [j.name for j in listed]
        request = pb.ListPipelineRunsRequest(parent=P, filter=f"state={state} AND model={MODEL}")
        assert [run] == [r.name for r in (await stub.ListPipelineRuns(request)).pipeline_runs]


async def test_watching_a_job_streams_states_and_log_until_it_ends(trainer: MemoryTrainer) -> None:
    name = JobName.parse((await trainer.stub.SubmitJob(submit_job())).job.name)
    watch = trainer.stub.WatchJob(pb.WatchJobRequest(name=str(name)))
    updates = aiter(watch)
    first = await anext(updates)
    assert (job_pb2.JOB_STATE_QUEUED, "") == (first.job.state, first.log)
    chunk = f"jobs/p/{name.job}/logs/driver/{0:020d}-0001"
    await trainer.ports.objects.put(chunk, "zurück\nzur".encode())
    second = await anext(updates)
    assert ("zurück\n", 8) == (second.log, second.log_offset)
    await trainer.ports.supervision(1).end(name, JobState.SUCCEEDED, Outcome(True), AT)
    last = [(update.job.state, update.log) async for update in updates]
    assert [(job_pb2.JOB_STATE_SUCCEEDED, "zur")] == last
    later = [u async for u in trainer.stub.WatchJob(pb.WatchJobRequest(name=str(name), log_offset=5))]
    assert ["ck\nzur"] == [update.log for update in later]
    other = trainer.stub.WatchJob(pb.WatchJobRequest(name=str(name), log_stream="rank-1"))
    assert [""] == [update.log async for update in other]
    wrong = trainer.stub.WatchJob(pb.WatchJobRequest(name=str(name), log_stream="../secret"))
    assert ("INVALID_ARGUMENT", "INVALID_LOG_STREAM") == await failure(wrong.read())


async def test_a_repeated_update_of_a_run_has_one_effect(trainer: MemoryTrainer) -> None:
    name = (await trainer.stub.CreateRun(create_run())).run.name
    update = pb.UpdateRunRequest(
        name=name, artifacts=[pb.RunArtifact(name="log")], state=pb.RUN_STATE_SUCCEEDED, request_id="once"
    )
    first = await trainer.stub.UpdateRun(update)
    assert first == await trainer.stub.UpdateRun(update)
    assert ["log"] == [artifact.name for artifact in first.run.artifacts]
    update.error_message = "other"
    assert ("INVALID_ARGUMENT", "REQUEST_ID_REUSED") == await failure(trainer.stub.UpdateRun(update))


async def test_a_request_that_the_cluster_cannot_satisfy_is_refused_at_once(trainer: MemoryTrainer) -> None:
    trainer.engine.machines.append(Node(2))
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await trainer.stub.SubmitJob(submit_job(gpus_per_worker=1))
    found = from_rpc_error(error.value)
    assert ("FAILED_PRECONDITION", "INFEASIBLE_RESOURCES") == (found.code.name, found.reason)
    assert "requests 2 GPUs, and the cluster has 0" in found.message
    assert not (await trainer.stub.ListJobs(pb.ListJobsRequest(parent=P))).jobs
    trainer.engine.down = True
    assert (await trainer.stub.SubmitJob(submit_job(gpus_per_worker=1))).job.name


async def test_memory_and_gpus_that_the_cluster_lacks_are_refused_at_once(trainer: MemoryTrainer) -> None:
    trainer.engine.machines.append(Node(2, 1, 4 * 1024**3, frozenset({"A100"})))

    async def refusal(workers: int = 1, **fields: Any) -> str:
        code = pb.CodeRecipe(function="flywheel_job.recipes.any:train", **fields)
        spec = pb.TrainSpec(experiment="late", workers=workers, gpu_fraction=0.5, code=code)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await trainer.stub.SubmitJob(pb.SubmitJobRequest(parent=P, job=pb.Job(train=spec)))
        found = from_rpc_error(error.value)
        assert ("FAILED_PRECONDITION", "INFEASIBLE_RESOURCES") == (found.code.name, found.reason)
        return found.message

    assert "GPUs of the type H200, and the cluster has A100" in await refusal(accelerator_type="H200")
    assert "8 GiB of memory per worker, and the largest machine has 4" in await refusal(
        memory_bytes_per_worker=8 << 30
    )
    assert "1.5 GPUs, and the cluster has 1" in await refusal(workers=3)


@pytest.mark.parametrize(
    "gpus",
    [
        {"gpu_fraction": 1.0},
        {"gpu_fraction": -0.5, "gpus_per_worker": 1},
        {"gpu_fraction": 0.5, "gpus_per_worker": 1},
        {"gpu_fraction": float("nan")},
    ],
)
async def test_a_fraction_that_is_none_is_refused(trainer: MemoryTrainer, gpus: dict[str, Any]) -> None:
    assert ("INVALID_ARGUMENT", "INVALID_SPEC") == await failure(trainer.stub.SubmitJob(submit_job(**gpus)))


async def test_an_attempt_writes_metrics_to_its_own_run_only(trainer: MemoryTrainer) -> None:
    """Its token permits nothing else, in open mode too."""
    job, other = [(await trainer.stub.SubmitJob(submit_job())).job for _ in range(2)]
    attempt = await trainer.ports.supervision(1).begin_attempt(JobName.parse(job.name), AT)
    assert attempt is not None
    token = trainer.ports.tokens.issue(attempt.engine_id)
    metadata = (("authorization", f"Bearer {token}"),)

    def points(run: str) -> pb.LogMetricsRequest:
        return pb.LogMetricsRequest(run=run, keys=["loss"], steps=[1], values=[0.5], times=[1])

    stub = trainer.stub
    assert 1 == (await stub.LogMetrics(points(job.run), metadata=metadata)).stored_count
    denied = stub.LogMetrics(points(other.run), metadata=metadata)
    assert ("PERMISSION_DENIED", "FOREIGN_RUN") == await failure(denied)
    read = stub.GetJob(pb.GetJobRequest(name=job.name), metadata=metadata)
    assert ("PERMISSION_DENIED", "ROLE_REQUIRED") == await failure(read)
    await trainer.ports.supervision(1).end(JobName.parse(job.name), JobState.FAILED, Outcome(False), AT)
    late = stub.LogMetrics(points(job.run), metadata=metadata)
    assert ("FAILED_PRECONDITION", "ATTEMPT_ENDED") == await failure(late)


async def test_watching_a_pipeline_run_streams_states_until_it_ends(trainer: MemoryTrainer) -> None:
    run = (await trainer.stub.StartPipelineRun(start_pipeline())).pipeline_run
    watch = trainer.stub.WatchPipelineRun(pb.WatchPipelineRunRequest(name=run.name))
    updates = aiter(watch)
    assert run == (await anext(updates)).pipeline_run
    name = PipelineRunName.parse(run.name)
    await trainer.ports.pipelines.finish(name, JobState.SUCCEEDED, "", "released", AT)
    assert [job_pb2.JOB_STATE_SUCCEEDED] == [update.pipeline_run.state async for update in updates]


async def test_watching_an_unknown_resource_fails(trainer: MemoryTrainer) -> None:
    job = trainer.stub.WatchJob(pb.WatchJobRequest(name=NO_JOB))
    run = trainer.stub.WatchPipelineRun(pb.WatchPipelineRunRequest(name=NO_PIPELINE))
    assert ("NOT_FOUND", "UNKNOWN_JOB") == await failure(job.read())
    assert ("NOT_FOUND", "UNKNOWN_PIPELINE_RUN") == await failure(run.read())
