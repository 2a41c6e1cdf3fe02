"""TrainerService at the edge: each method converts, awaits a use case, and converts back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from google.protobuf.message import Message

from flywheel_common.granted.access import ObjectAccess
from flywheel_common.grpc.attempt_tokens import current_attempt
from flywheel_common.grpc.object_methods import ObjectMethods
from flywheel_common.names import parse_project
from flywheel_common.paging import page_size
from flywheel_protos.trainer.v1 import object_access_pb2, trainer_pb2_grpc
from flywheel_protos.trainer.v1 import origin_pb2 as origin_pb
from flywheel_protos.trainer.v1 import pipeline_graph_pb2 as graph_pb
from flywheel_protos.trainer.v1 import trainer_pb2 as pb
from flywheel_trainer.api.checkpoint_methods import CheckpointMethods
from flywheel_trainer.api.convert_graphs import graph_from_proto, pipeline_to_proto, to_json
from flywheel_trainer.api.convert_jobs import job_to_proto
from flywheel_trainer.api.convert_pipelines import (
    check_one_source,
    pipeline_run_to_proto,
    pipeline_spec_from_proto,
)
from flywheel_trainer.api.convert_policies import (
    decision_to_proto,
    node_to_proto,
    policy_from_proto,
    policy_to_proto,
)
from flywheel_trainer.api.convert_runs import (
    experiment_to_proto,
    run_from_proto,
    run_to_proto,
    run_update_from_proto,
)
from flywheel_trainer.api.tracking_methods import TrackingMethods
from flywheel_trainer.api.trial_methods import TrialMethods
from flywheel_trainer.checkpoints.use_cases import JobCheckpoints
from flywheel_trainer.encoding.specs import spec_of
from flywheel_trainer.jobs.errors import InvalidSource
from flywheel_trainer.jobs.job import FILTER_FIELDS as JOB_FIELDS
from flywheel_trainer.jobs.job import JobName
from flywheel_trainer.jobs.sources import Sources
from flywheel_trainer.jobs.use_cases import Jobs
from flywheel_trainer.pipelines.definition import PipelineName
from flywheel_trainer.pipelines.pipeline_run import FILTER_FIELDS as PIPELINE_FIELDS
from flywheel_trainer.pipelines.pipeline_run import PipelineRunName
from flywheel_trainer.pipelines.use_cases import Pipelines
from flywheel_trainer.policies.origin import Origins
from flywheel_trainer.policies.policy import PolicyName
from flywheel_trainer.policies.use_cases import Policies
from flywheel_trainer.runs.editing import RunEditing
from flywheel_trainer.runs.filter_terms import parse_terms
from flywheel_trainer.runs.purging import RunPurge
from flywheel_trainer.runs.run import Experiment, ExperimentName, RunName
from flywheel_trainer.runs.run_artifacts import RunArtifacts
from flywheel_trainer.runs.search import parse_filter, parse_order
from flywheel_trainer.runs.use_cases import Runs
from flywheel_trainer.trials.use_cases import Trials


class TrainerServicer(
    TrackingMethods,
    TrialMethods,
    ObjectMethods,
    CheckpointMethods,
    trainer_pb2_grpc.TrainerServiceServicer,
):
    """flywheel.trainer.v1.TrainerService; `poll_seconds` is the interval of the Watch methods."""

    _sign_response = object_access_pb2.SignObjectRequestsResponse

    def __init__(
        self,
        runs: Runs,
        jobs: Jobs,
        sources: Sources,
        pipelines: Pipelines,
        policies: Policies,
        origins: Origins,
        trials: Trials,
        *,
        checkpoints: JobCheckpoints,
        run_editing: RunEditing,
        run_artifacts: RunArtifacts,
        object_access: ObjectAccess,
        run_purge: RunPurge,
        poll_seconds: float,
    ) -> None:
        super().__init__(run_editing, run_artifacts, run_purge)
        self._trials, self._object_access, self._checkpoints = trials, object_access, checkpoints
        self._runs, self._jobs, self._pipelines, self._policies = runs, jobs, pipelines, policies
        self._sources, self._origins = sources, origins
        self._poll_seconds = poll_seconds

    async def CreateExperiment(
        self, request: pb.CreateExperimentRequest, context: Any
    ) -> pb.CreateExperimentResponse:
        name = ExperimentName(parse_project(request.parent), request.experiment_id)
        experiment = Experiment(name, request.experiment.description, dict(request.experiment.tags))
        created = await self._runs.create_experiment(experiment, request.request_id, _body(request))
        return pb.CreateExperimentResponse(experiment=experiment_to_proto(created))

    async def ListExperiments(
        self, request: pb.ListExperimentsRequest, context: Any
    ) -> pb.ListExperimentsResponse:
        project = parse_project(request.parent)
        page = await self._runs.list_experiments(project, page_size(request.page_size), request.page_token)
        return pb.ListExperimentsResponse(
            experiments=map(experiment_to_proto, page.items), next_page_token=page.next_page_token
        )

    async def CreateRun(self, request: pb.CreateRunRequest, context: Any) -> pb.CreateRunResponse:
        project = parse_project(request.parent)
        run = run_from_proto(request, project)
        body = _body(request)
        if request.run_id:
            created = await self._runs.create_named_run(run, request.request_id, body)
        else:
            created = await self._runs.create_run(run, project, request.request_id, body)
        return pb.CreateRunResponse(run=run_to_proto(created))

    async def GetRun(self, request: pb.GetRunRequest, context: Any) -> pb.GetRunResponse:
        return pb.GetRunResponse(run=run_to_proto(await self._runs.get(RunName.parse(request.name))))

    async def ListRuns(self, request: pb.ListRunsRequest, context: Any) -> pb.ListRunsResponse:
        page = await self._runs.list_runs(
            parse_project(request.parent),
            parse_filter(request.filter),
            parse_order(request.order_by),
            page_size(request.page_size),
            request.page_token,
            show_deleted=request.show_deleted,
        )
        return pb.ListRunsResponse(runs=map(run_to_proto, page.items), next_page_token=page.next_page_token)

    async def LogMetrics(self, request: pb.LogMetricsRequest, context: Any) -> pb.LogMetricsResponse:
        name = RunName.parse(request.run)
        logged = await self._runs.log_metrics(
            name,
            request.keys,
            request.steps,
            request.values,
            request.times,
            current_attempt(),
            request.generation,
        )
        return pb.LogMetricsResponse(stored_count=logged.stored, ignored_count=logged.ignored)

    async def ListMetricPoints(
        self, request: pb.ListMetricPointsRequest, context: Any
    ) -> pb.ListMetricPointsResponse:
        size = page_size(request.page_size, default=1000, maximum=100_000)
        page = await self._runs.points(RunName.parse(request.run), request.key, size, request.page_token)
        return pb.ListMetricPointsResponse(
            keys=[p.key for p in page.items],
            steps=[p.step for p in page.items],
            values=[p.value for p in page.items],
            times=[p.time_us for p in page.items],
            next_page_token=page.next_page_token,
        )

    async def UpdateRun(self, request: pb.UpdateRunRequest, context: Any) -> pb.UpdateRunResponse:
        name = RunName.parse(request.name)
        run, ignored = await self._runs.update(
            name, run_update_from_proto(request), request.request_id, _body(request)
        )
        return pb.UpdateRunResponse(run=run_to_proto(run), ignored_params=ignored)

    async def UploadSource(
        self, requests: AsyncIterator[pb.UploadSourceRequest], context: Any
    ) -> pb.UploadSourceResponse:
        first = await anext(aiter(requests), None)
        if first is None or first.WhichOneof("part") != "target":
            raise InvalidSource("The first message must name the target: parent, sha256 and size_bytes.")
        target = first.target
        parse_project(target.parent)
        await self._sources.upload(target.sha256, target.size_bytes, _data(requests))
        return pb.UploadSourceResponse(sha256=target.sha256, size_bytes=target.size_bytes)

    async def SubmitJob(self, request: pb.SubmitJobRequest, context: Any) -> pb.SubmitJobResponse:
        spec = spec_of(request.job)
        project = parse_project(request.parent)
        job = await self._jobs.submit(project, spec, request.job.priority, request.request_id, _body(request))
        return pb.SubmitJobResponse(job=job_to_proto(job))

    async def GetJob(self, request: pb.GetJobRequest, context: Any) -> pb.GetJobResponse:
        return pb.GetJobResponse(job=job_to_proto(await self._jobs.get(JobName.parse(request.name))))

    async def ListJobs(self, request: pb.ListJobsRequest, context: Any) -> pb.ListJobsResponse:
        page = await self._jobs.list(
            parse_project(request.parent),
            parse_terms(request.filter, JOB_FIELDS),
            page_size(request.page_size),
            request.page_token,
        )
        return pb.ListJobsResponse(jobs=map(job_to_proto, page.items), next_page_token=page.next_page_token)

    async def WatchJob(self, request: pb.WatchJobRequest, context: Any) -> AsyncIterator[pb.WatchJobResponse]:
        async for job, log, offset in self._jobs.watch(
            JobName.parse(request.name), request.log_stream, request.log_offset, self._poll_seconds
        ):
            yield pb.WatchJobResponse(
                job=job_to_proto(job), log=log.decode(errors="replace"), log_offset=offset
            )

    async def CancelJob(self, request: pb.CancelJobRequest, context: Any) -> pb.CancelJobResponse:
        job = await self._jobs.cancel(JobName.parse(request.name), request.request_id, _body(request))
        return pb.CancelJobResponse(job=job_to_proto(job))

    async def StartPipelineRun(
        self, request: pb.StartPipelineRunRequest, context: Any
    ) -> pb.StartPipelineRunResponse:
        project, body = parse_project(request.parent), _body(request)
        check_one_source(request)
        if request.pipeline:
            params = to_json(request.params)
            run = await self._pipelines.start_pipeline(
                project, request.pipeline, params, request.request_id, body
            )
        else:
            spec = pipeline_spec_from_proto(request.spec)
            run = await self._pipelines.start(project, spec, request.request_id, body)
        return pb.StartPipelineRunResponse(pipeline_run=pipeline_run_to_proto(run))

    async def GetPipelineRun(
        self, request: pb.GetPipelineRunRequest, context: Any
    ) -> pb.GetPipelineRunResponse:
        run = await self._pipelines.get(PipelineRunName.parse(request.name))
        return pb.GetPipelineRunResponse(pipeline_run=pipeline_run_to_proto(run))

    async def ListPipelineRuns(
        self, request: pb.ListPipelineRunsRequest, context: Any
    ) -> pb.ListPipelineRunsResponse:
        page = await self._pipelines.list(
            parse_project(request.parent),
            parse_terms(request.filter, PIPELINE_FIELDS),
            page_size(request.page_size),
            request.page_token,
        )
        return pb.ListPipelineRunsResponse(
            pipeline_runs=map(pipeline_run_to_proto, page.items), next_page_token=page.next_page_token
        )

    async def WatchPipelineRun(
        self, request: pb.WatchPipelineRunRequest, context: Any
    ) -> AsyncIterator[pb.WatchPipelineRunResponse]:
        async for run in self._pipelines.watch(PipelineRunName.parse(request.name), self._poll_seconds):
            yield pb.WatchPipelineRunResponse(pipeline_run=pipeline_run_to_proto(run))

    async def CancelPipelineRun(
        self, request: pb.CancelPipelineRunRequest, context: Any
    ) -> pb.CancelPipelineRunResponse:
        run = await self._pipelines.cancel(
            PipelineRunName.parse(request.name), request.request_id, _body(request)
        )
        return pb.CancelPipelineRunResponse(pipeline_run=pipeline_run_to_proto(run))

    async def SetRetrainingPolicy(
        self, request: pb.SetRetrainingPolicyRequest, context: Any
    ) -> pb.SetRetrainingPolicyResponse:
        policy = await self._policies.set(
            policy_from_proto(request.policy), request.request_id, _body(request)
        )
        return pb.SetRetrainingPolicyResponse(policy=policy_to_proto(policy))

    async def GetRetrainingPolicy(
        self, request: pb.GetRetrainingPolicyRequest, context: Any
    ) -> pb.GetRetrainingPolicyResponse:
        policy = await self._policies.get(PolicyName.parse(request.name))
        return pb.GetRetrainingPolicyResponse(policy=policy_to_proto(policy))

    async def ListRetrainingPolicies(
        self, request: pb.ListRetrainingPoliciesRequest, context: Any
    ) -> pb.ListRetrainingPoliciesResponse:
        page = await self._policies.list(
            parse_project(request.parent), page_size(request.page_size), request.page_token
        )
        return pb.ListRetrainingPoliciesResponse(
            policies=map(policy_to_proto, page.items), next_page_token=page.next_page_token
        )

    async def ListRetrainingDecisions(
        self, request: pb.ListRetrainingDecisionsRequest, context: Any
    ) -> pb.ListRetrainingDecisionsResponse:
        page = await self._policies.decisions(
            PolicyName.parse(request.parent), page_size(request.page_size), request.page_token
        )
        return pb.ListRetrainingDecisionsResponse(
            decisions=map(decision_to_proto, page.items), next_page_token=page.next_page_token
        )

    async def ApplyPipeline(
        self, request: graph_pb.ApplyPipelineRequest, context: Any
    ) -> graph_pb.ApplyPipelineResponse:
        name = PipelineName(parse_project(request.parent), request.pipeline_id)
        pipeline, created = await self._pipelines.apply(
            name, graph_from_proto(request.graph), request.request_id, _body(request)
        )
        return graph_pb.ApplyPipelineResponse(pipeline=pipeline_to_proto(pipeline), created=created)

    async def GetPipeline(
        self, request: graph_pb.GetPipelineRequest, context: Any
    ) -> graph_pb.GetPipelineResponse:
        pipeline = await self._pipelines.get_pipeline(request.name)
        return graph_pb.GetPipelineResponse(pipeline=pipeline_to_proto(pipeline))

    async def ListPipelines(
        self, request: graph_pb.ListPipelinesRequest, context: Any
    ) -> graph_pb.ListPipelinesResponse:
        page = await self._pipelines.list_pipelines(
            parse_project(request.parent), page_size(request.page_size), request.page_token
        )
        return graph_pb.ListPipelinesResponse(
            pipelines=map(pipeline_to_proto, page.items), next_page_token=page.next_page_token
        )

    async def RerunPipelineRun(
        self, request: pb.RerunPipelineRunRequest, context: Any
    ) -> pb.RerunPipelineRunResponse:
        name = PipelineRunName.parse(request.name)
        run = await self._pipelines.rerun(name, request.from_step, request.request_id, _body(request))
        return pb.RerunPipelineRunResponse(pipeline_run=pipeline_run_to_proto(run))

    async def ApprovePipelineStep(
        self, request: pb.ApprovePipelineStepRequest, context: Any
    ) -> pb.ApprovePipelineStepResponse:
        run = await self._pipelines.decide(
            PipelineRunName.parse(request.name),
            request.step,
            request.approved,
            request.reason,
            request_id=request.request_id,
            body=_body(request),
        )
        return pb.ApprovePipelineStepResponse(pipeline_run=pipeline_run_to_proto(run))

    async def ExplainModelVersion(
        self, request: origin_pb.ExplainModelVersionRequest, context: Any
    ) -> origin_pb.ExplainModelVersionResponse:
        return origin_pb.ExplainModelVersionResponse(
            origin=node_to_proto(await self._origins.of(request.name))
        )


def _body(request: Message) -> bytes:
    return request.SerializeToString(deterministic=True)


async def _data(requests: AsyncIterator[pb.UploadSourceRequest]) -> AsyncIterator[bytes]:
    async for request in requests:
        if request.WhichOneof("part") != "data":
            raise InvalidSource("Only the first message names the target; all others must carry data.")
        yield request.data
