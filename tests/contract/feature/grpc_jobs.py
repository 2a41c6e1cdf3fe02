"""jobs.JobStore by the RPCs of the service, as far as they reach."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC
from typing import Any

from flywheel_common.errors import NotFound
from flywheel_feature.jobs.model import Job, JobState, Progress
from flywheel_protos.feature.v1 import feature_pb2 as pb
from flywheel_protos.types.v1 import job_pb2


class GrpcJobs:
    """Kinds are MATERIALIZE and SKEW_CHECK; a job's request is the text of a number, sent inside the body. Ids and times are given by
    the server."""

    def __init__(self, stub: Any) -> None:
        self._stub = stub

    async def create(self, job: Job, request_id: str, request_hash: bytes) -> Job:
        parent, number = f"projects/{job.project}", int(job.request)
        if job.kind == "MATERIALIZE":
            answer = await self._stub.MaterializeView(
                pb.MaterializeViewRequest(parent=parent, rows_per_second=number, request_id=request_id)
            )
        else:
            answer = await self._stub.CheckSkew(
                pb.CheckSkewRequest(
                    parent=parent,
                    predictions_uri="s3://bucket/log/",
                    sample_limit=number,
                    request_id=request_id,
                )
            )
        return _job(answer.job)

    async def get(self, project: str, job_id: str) -> Job | None:
        try:
            answer = await self._stub.GetJob(pb.GetJobRequest(name=f"projects/{project}/jobs/{job_id}"))
        except NotFound:
            return None
        return _job(answer.job)

    async def list(self, project: str, *, kind: str, state: str, before: str, limit: int) -> list[Job]:
        terms = [f"{key}={value}" for key, value in (("kind", kind), ("state", state)) if value]
        request = pb.ListJobsRequest(parent=f"projects/{project}", filter=" ".join(terms), page_size=limit)
        found: list[Job] = []
        while len(found) < limit:
            answer = await self._stub.ListJobs(request)
            found += [job for job in map(_job, answer.jobs) if not before or job.id < before]
            if not answer.next_page_token:
                break
            request.page_token = answer.next_page_token
        return found[:limit]

    async def request_cancel(self, project: str, job_id: str) -> Job | None:
        try:
            name = f"projects/{project}/jobs/{job_id}"
            answer = await self._stub.CancelJob(pb.CancelJobRequest(name=name))
        except NotFound:
            return None
        return _job(answer.job)

    async def repeated(self, project: str, kind: str, request_id: str, request_hash: bytes) -> Job | None:
        raise NotImplementedError

    async def claim(self, owner: str, kinds: Sequence[str], lease_seconds: float) -> Job | None:
        raise NotImplementedError

    async def heartbeat(self, job: Job, owner: str, progress: Progress, lease_seconds: float) -> bool | None:
        raise NotImplementedError

    async def save_checkpoint(self, job: Job, owner: str, checkpoint: bytes) -> None:
        raise NotImplementedError

    async def forget_request(self, job: Job, owner: str) -> None:
        raise NotImplementedError

    async def finish(self, job: Job, owner: str) -> None:
        raise NotImplementedError

    async def requeue(self, job: Job, owner: str, delay_seconds: float) -> None:
        raise NotImplementedError


def _job(message: pb.Job) -> Job:
    _, project, _, job_id = message.name.split("/")
    p = message.progress
    return Job(
        project,
        job_id,
        message.kind,
        b"",
        message.created_at.ToDatetime(UTC),
        state=JobState(job_pb2.JobState.Name(message.state).removeprefix("JOB_STATE_")),
        progress=Progress(p.done, p.total, p.unit, p.message),
        ended_at=message.ended_at.ToDatetime(UTC) if message.HasField("ended_at") else None,
        error_reason=message.error_reason,
        error_message=message.error_message,
        training_set=message.training_set,
    )
