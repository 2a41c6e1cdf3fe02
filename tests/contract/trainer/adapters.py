"""The trainer's ports by RPC. A service makes names and times itself: it is told those that the caller of a store would have given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from flywheel_common.clock import SystemClock
from flywheel_common.errors import NotFound
from flywheel_common.grpc.error_details import from_rpc_error
from flywheel_common.paging import Page
from flywheel_protos.trainer.v1 import trainer_pb2 as pb
from flywheel_protos.trainer.v1 import trainer_pb2_grpc
from flywheel_protos.types.v1 import job_pb2
from flywheel_trainer.api.convert_jobs import job_to_proto, train_from
from flywheel_trainer.api.convert_pipelines import pipeline_from, pipeline_to_proto
from flywheel_trainer.api.convert_policies import policy_from, policy_to_proto
from flywheel_trainer.api.convert_runs import artifacts_from_proto, run_to_proto
from flywheel_trainer.jobs.job import Job, JobName, JobState
from flywheel_trainer.jobs.ports import JobStore
from flywheel_trainer.pipelines.pipeline_run import PipelineRun, PipelineRunName, Step
from flywheel_trainer.pipelines.ports import PipelineStore
from flywheel_trainer.policies.decision import Decision, Reason
from flywheel_trainer.policies.policy import Policy, PolicyName
from flywheel_trainer.recipes.outcome import MetricPoint
from flywheel_trainer.runs.ports import RunStore
from flywheel_trainer.runs.run import Experiment, ExperimentName, Run, RunName, RunState, RunUpdate
from flywheel_trainer.runs.search import Order, Term


class Told(SystemClock):
    """Time and ids of the service as the caller of a store would have given them."""

    def __init__(self) -> None:
        self.at, self.id = datetime(2026, 1, 1, tzinfo=UTC), ""

    def now(self) -> datetime:
        return self.at

    def new(self) -> str:
        return self.id


class Calls:
    """RPCs whose refusals are the domain's errors again. A service makes names and times itself: it is told which."""

    def __init__(self, stub: trainer_pb2_grpc.TrainerServiceStub, told: Told) -> None:
        self._stub, self._told = stub, told

    async def call(self, method: str, request: Any, *, at: datetime | None = None, name: str = "") -> Any:
        self._told.at, self._told.id = at or self._told.at, name.partition("-")[2]
        try:
            return await getattr(self._stub, method)(request, timeout=20)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None

    async def or_none(self, method: str, request: Any) -> Any:
        try:
            return await self.call(method, request)
        except NotFound:
            return None


class GrpcRuns:
    """`runs.RunStore`; silent runs are looked for behind the edge."""

    def __init__(self, calls: Calls, behind: RunStore) -> None:
        self._calls, self.expire = calls, behind.expire

    async def create_experiment(
        self, experiment: Experiment, request_id: str, body: bytes, now: datetime
    ) -> Experiment:
        request = pb.CreateExperimentRequest(
            parent=f"projects/{experiment.name.project}",
            experiment_id=experiment.name.experiment,
            experiment=pb.Experiment(description=experiment.description, tags=experiment.tags),
            request_id=request_id,
        )
        return experiment_from((await self._calls.call("CreateExperiment", request, at=now)).experiment)

    async def list_experiments(self, project: str, size: int, token: str) -> Page[Experiment]:
        request = pb.ListExperimentsRequest(parent=f"projects/{project}", page_size=size, page_token=token)
        answer = await self._calls.call("ListExperiments", request)
        return Page([experiment_from(e) for e in answer.experiments], answer.next_page_token)

    async def create_run(self, run: Run, request_id: str, body: bytes, now: datetime) -> Run:
        message = run_to_proto(run)
        message.ClearField("name")
        request = pb.CreateRunRequest(
            parent=f"projects/{run.name.project}", run=message, lease=message.lease, request_id=request_id
        )
        answer = await self._calls.call("CreateRun", request, at=now, name=run.name.run)
        return run_from(answer.run)

    async def get_run(self, name: RunName) -> Run | None:
        answer = await self._calls.or_none("GetRun", pb.GetRunRequest(name=str(name)))
        return None if answer is None else run_from(answer.run)

    async def list_runs(
        self, project: str, terms: Sequence[Term], order: Order | None, size: int, token: str
    ) -> Page[Run]:
        filters = [f"{t.field}{'.' if t.key else ''}{t.key}{t.operator}{t.value}" for t in terms]
        request = pb.ListRunsRequest(
            parent=f"projects/{project}", page_size=size, page_token=token, filter=" AND ".join(filters),
            order_by="" if order is None else f"{'-' * order.descending}metrics.{order.metric}",
        )  # fmt: skip
        answer = await self._calls.call("ListRuns", request)
        return Page([run_from(r) for r in answer.runs], answer.next_page_token)

    async def log(self, name: RunName, points: Sequence[MetricPoint], now: datetime) -> int:
        request = pb.LogMetricsRequest(
            run=str(name), keys=[p.key for p in points], steps=[p.step for p in points], values=[p.value for p in points],
            times=[p.time_us for p in points],
        )  # fmt: skip
        return (await self._calls.call("LogMetrics", request, at=now)).stored_count

    async def points(self, name: RunName, key: str, size: int, token: str) -> Page[MetricPoint]:
        request = pb.ListMetricPointsRequest(run=str(name), key=key, page_size=size, page_token=token)
        answer = await self._calls.call("ListMetricPoints", request)
        rows = zip(answer.keys, answer.steps, answer.values, answer.times, strict=True)
        return Page([MetricPoint(*row) for row in rows], answer.next_page_token)

    async def update(self, name: RunName, update: RunUpdate, now: datetime) -> Run:
        request = pb.UpdateRunRequest(
            name=str(name), params=update.params, tags=update.tags, artifacts=run_to_proto(
                Run(name, "none", artifacts=update.artifacts)
            ).artifacts, error_message=update.error_message,
        )  # fmt: skip
        if update.state is not None:
            request.state = pb.RunState.Value(f"RUN_STATE_{update.state}")
        return run_from((await self._calls.call("UpdateRun", request, at=now)).run)


class GrpcJobs:
    """`jobs.JobStore`; what the supervisor does is done behind the edge."""

    def __init__(self, calls: Calls, behind: JobStore) -> None:
        self._calls = calls
        self.by_request, self.active, self.started = behind.by_request, behind.active, behind.started
        self.waits, self.alive, self.end, self.progress = (
            behind.waits,
            behind.alive,
            behind.end,
            behind.progress,
        )

    async def create(
        self, job: Job, details: Mapping[str, Any], request_id: str, body: bytes, now: datetime
    ) -> Job:
        message = job_to_proto(job)
        message.ClearField("name")
        message.ClearField("run")
        parent = f"projects/{job.name.project}"
        request = pb.SubmitJobRequest(parent=parent, job=message, request_id=request_id)
        answer = await self._calls.call("SubmitJob", request, at=now, name=job.name.job)
        return job_from(answer.job)

    async def get(self, name: JobName) -> Job | None:
        answer = await self._calls.or_none("GetJob", pb.GetJobRequest(name=str(name)))
        return None if answer is None else job_from(answer.job)

    async def list(self, project: str, size: int, token: str) -> Page[Job]:
        request = pb.ListJobsRequest(parent=f"projects/{project}", page_size=size, page_token=token)
        answer = await self._calls.call("ListJobs", request)
        return Page([job_from(j) for j in answer.jobs], answer.next_page_token)

    async def request_cancel(self, name: JobName, request_id: str = "", body: bytes = b"") -> Job:
        request = pb.CancelJobRequest(name=str(name), request_id=request_id)
        return job_from((await self._calls.call("CancelJob", request)).job)


class GrpcPipelines:
    """`pipelines.PipelineStore`; what the workflow does is done behind the edge."""

    def __init__(self, calls: Calls, behind: PipelineStore) -> None:
        self._calls = calls
        self.unfinished, self.begin_step, self.note = behind.unfinished, behind.begin_step, behind.note
        self.end_step, self.finish = behind.end_step, behind.finish

    async def create(self, run: PipelineRun, request_id: str, body: bytes, now: datetime) -> PipelineRun:
        project = run.name.project
        request = pb.StartPipelineRunRequest(
            parent=f"projects/{project}", spec=pipeline_to_proto(run.spec, project), request_id=request_id
        )  # fmt: skip
        answer = await self._calls.call("StartPipelineRun", request, at=now, name=run.name.run)
        return pipeline_run_from(answer.pipeline_run)

    async def get(self, name: PipelineRunName) -> PipelineRun | None:
        answer = await self._calls.or_none("GetPipelineRun", pb.GetPipelineRunRequest(name=str(name)))
        return None if answer is None else pipeline_run_from(answer.pipeline_run)

    async def list(self, project: str, size: int, token: str) -> Page[PipelineRun]:
        request = pb.ListPipelineRunsRequest(parent=f"projects/{project}", page_size=size, page_token=token)
        answer = await self._calls.call("ListPipelineRuns", request)
        return Page([pipeline_run_from(r) for r in answer.pipeline_runs], answer.next_page_token)

    async def request_cancel(
        self, name: PipelineRunName, request_id: str = "", body: bytes = b""
    ) -> PipelineRun:
        request = pb.CancelPipelineRunRequest(name=str(name), request_id=request_id)
        return pipeline_run_from((await self._calls.call("CancelPipelineRun", request)).pipeline_run)


class GrpcPolicies:
    """`policies.PolicyStore`."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def set(self, policy: Policy, request_id: str, body: bytes, now: datetime) -> Policy:
        request = pb.SetRetrainingPolicyRequest(policy=policy_to_proto(policy), request_id=request_id)
        return policy_from((await self._calls.call("SetRetrainingPolicy", request, at=now)).policy)

    async def get(self, name: PolicyName) -> Policy | None:
        answer = await self._calls.or_none(
            "GetRetrainingPolicy", pb.GetRetrainingPolicyRequest(name=str(name))
        )
        return None if answer is None else policy_from(answer.policy)

    async def decisions(self, name: PolicyName, size: int, token: str) -> Page[Decision]:
        request = pb.ListRetrainingDecisionsRequest(parent=str(name), page_size=size, page_token=token)
        answer = await self._calls.call("ListRetrainingDecisions", request)
        found = [
            Decision(
                name, d.alert, d.model, d.event_time.ToDatetime(tzinfo=UTC), d.started, Reason(d.reason), d.pipeline_run
            )
            for d in answer.decisions
        ]  # fmt: skip
        return Page(found, answer.next_page_token)


def _time(message: Any, field: str) -> datetime | None:
    value: Timestamp = getattr(message, field)
    return value.ToDatetime(tzinfo=UTC) if message.HasField(field) else None


def experiment_from(message: pb.Experiment) -> Experiment:
    name = ExperimentName.parse(message.name)
    return Experiment(name, message.description, dict(message.tags), _time(message, "created_at"))


def run_from(message: pb.Run) -> Run:
    return Run(
        name=RunName.parse(message.name),
        experiment=ExperimentName.parse(message.experiment).experiment,
        state=RunState(pb.RunState.Name(message.state).removeprefix("RUN_STATE_")),
        params=dict(message.params),
        metrics=dict(message.metrics),
        tags=dict(message.tags),
        artifacts=artifacts_from_proto(message.artifacts),
        code_version=message.code_version,
        environment=dict(message.environment),
        training_set=message.training_set,
        job=message.job,
        lease_seconds=message.lease.ToTimedelta().total_seconds(),
        started_at=_time(message, "started_at"),
        ended_at=_time(message, "ended_at"),
        error_message=message.error_message,
    )


def _state(value: int) -> JobState:
    return JobState(job_pb2.JobState.Name(value).removeprefix("JOB_STATE_"))


def job_from(message: pb.Job) -> Job:
    return Job(
        name=JobName.parse(message.name),
        spec=train_from(message.train),
        run=RunName.parse(message.run),
        kind=message.kind,
        state=_state(message.state),
        progress={field.name: value for field, value in message.progress.ListFields()},
        error_reason=message.error_reason,
        error_message=message.error_message,
        priority=message.priority,
        cancel_requested=message.cancel_requested,
        created_at=_time(message, "created_at"),
        started_at=_time(message, "started_at"),
        ended_at=_time(message, "ended_at"),
    )


def pipeline_run_from(message: pb.PipelineRun) -> PipelineRun:
    event_time = _time(message, "event_time")
    assert event_time is not None
    return PipelineRun(
        name=PipelineRunName.parse(message.name),
        spec=pipeline_from(message.spec),
        event_time=event_time,
        state=_state(message.state),
        steps=tuple(
            Step(s.step, _state(s.state), _time(s, "started_at"), _time(s, "ended_at"), s.output, s.message)
            for s in message.steps
        ),
        training_set=message.training_set,
        run=message.run,
        model_version=message.model_version,
        release=message.release,
        rollout=message.rollout,
        gate_passed=message.gate_passed,
        error_reason=message.error_reason,
        error_message=message.error_message,
        cause_alert=message.cause_alert,
        cancel_requested=message.cancel_requested,
        created_at=_time(message, "created_at"),
        ended_at=_time(message, "ended_at"),
    )
