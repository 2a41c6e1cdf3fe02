"""The methods of FeatureService that read, watch and cancel jobs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from flywheel_common.names import Pattern, parse_project
from flywheel_common.paging import decode_token, encode_token, page_size
from flywheel_common.postgres.idempotency import Idempotency
from flywheel_feature.api import convert_jobs
from flywheel_feature.jobs.model import Job
from flywheel_feature.jobs.runner import JobRunner
from flywheel_protos.feature.v1 import feature_pb2 as pb

JOB = Pattern("projects/{project}/jobs/{job:any}")


class JobMethods:
    """Mixin of the servicer."""

    _jobs: JobRunner
    _idempotency: Idempotency

    async def GetJob(self, request: pb.GetJobRequest, context: Any) -> pb.GetJobResponse:
        job = await self._jobs.get(*_job_name(request.name))
        return pb.GetJobResponse(job=convert_jobs.job_to_proto(job))

    async def ListJobs(self, request: pb.ListJobsRequest, context: Any) -> pb.ListJobsResponse:
        query = f"{request.parent}\n{request.filter}"
        after = decode_token(request.page_token, query=query)
        size = page_size(request.page_size, default=100)
        kind, state = convert_jobs.job_filter(request.filter)
        found = await self._jobs.list(
            parse_project(request.parent),
            kind=kind,
            state=state,
            before=str(after[0]) if after else "",
            limit=size + 1,
        )
        more = encode_token([found[size - 1].id], query=query) if len(found) > size else ""
        return pb.ListJobsResponse(jobs=map(convert_jobs.job_to_proto, found[:size]), next_page_token=more)

    async def WatchJob(self, request: pb.WatchJobRequest, context: Any) -> AsyncIterator[pb.WatchJobResponse]:
        async for job in self._jobs.watch(*_job_name(request.name)):
            yield pb.WatchJobResponse(job=convert_jobs.job_to_proto(job))

    async def CancelJob(self, request: pb.CancelJobRequest, context: Any) -> pb.CancelJobResponse:
        async def effect(conn: Any) -> pb.CancelJobResponse:
            # A cancellation is idempotent, so it need not share a transaction with the stored answer.
            del conn
            job: Job = await self._jobs.cancel(*_job_name(request.name))
            return pb.CancelJobResponse(job=convert_jobs.job_to_proto(job))

        return await self._idempotency.run(
            "CancelJob", request.request_id, request, pb.CancelJobResponse, effect
        )


def _job_name(name: str) -> tuple[str, str]:
    parts = JOB.parse(name)
    return str(parts["project"]), str(parts["job"])
