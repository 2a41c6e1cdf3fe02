"""Methods of TrainerService that change runs beside their processes, and their artifacts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from google.protobuf.message import Message

from flywheel_common.names import parse_project
from flywheel_common.paging import page_size
from flywheel_protos.trainer.v1 import purge_pb2, tracking_pb2
from flywheel_protos.trainer.v1 import trainer_pb2 as pb
from flywheel_trainer.api.convert_runs import run_edit_from_proto, run_to_proto
from flywheel_trainer.runs.editing import RunEditing
from flywheel_trainer.runs.errors import InvalidArtifact
from flywheel_trainer.runs.purging import RunPurge
from flywheel_trainer.runs.run import RunName
from flywheel_trainer.runs.run_artifacts import RunArtifacts


class TrackingMethods:
    """EditRun, DeleteRun, RestoreRun, PurgeRuns, ContinueRun, UploadRunArtifact, DownloadRunArtifact."""

    def __init__(self, editing: RunEditing, artifacts: RunArtifacts, purge: RunPurge) -> None:
        self._editing, self._artifacts, self._purge = editing, artifacts, purge

    async def EditRun(self, request: tracking_pb2.EditRunRequest, context: Any) -> pb.EditRunResponse:
        name = RunName.parse(request.name)
        edit = run_edit_from_proto(request)
        run = await self._editing.edit(name, edit, request.request_id, _body(request))
        return pb.EditRunResponse(run=run_to_proto(run))

    async def DeleteRun(
        self, request: tracking_pb2.DeleteRunRequest, context: Any
    ) -> tracking_pb2.DeleteRunResponse:
        await self._editing.delete(RunName.parse(request.name))
        return tracking_pb2.DeleteRunResponse()

    async def RestoreRun(
        self, request: tracking_pb2.RestoreRunRequest, context: Any
    ) -> pb.RestoreRunResponse:
        return pb.RestoreRunResponse(
            run=run_to_proto(await self._editing.restore(RunName.parse(request.name)))
        )

    async def PurgeRuns(
        self, request: purge_pb2.PurgeRunsRequest, context: Any
    ) -> purge_pb2.PurgeRunsResponse:
        project = parse_project(request.parent)
        purged = await self._purge.purge(
            project,
            request.deleted_for.ToTimedelta(),
            page_size(request.page_size),
            dry_run=request.dry_run,
        )
        return purge_pb2.PurgeRunsResponse(
            runs=[str(name) for name in purged.runs], artifact_bytes=purged.artifact_bytes
        )

    async def ContinueRun(
        self, request: tracking_pb2.ContinueRunRequest, context: Any
    ) -> pb.ContinueRunResponse:
        step = request.rewind_to_step if request.HasField("rewind_to_step") else None
        name = RunName.parse(request.name)
        run = await self._editing.continue_run(name, step, request.request_id, _body(request))
        return pb.ContinueRunResponse(run=run_to_proto(run))

    async def UploadRunArtifact(
        self, requests: AsyncIterator[tracking_pb2.UploadRunArtifactRequest], context: Any
    ) -> pb.UploadRunArtifactResponse:
        first = await anext(aiter(requests), None)
        if first is None or first.WhichOneof("part") != "target":
            raise InvalidArtifact(
                "The first message must name the target: run, artifact, sha256 and size_bytes."
            )
        target = first.target
        name = RunName.parse(target.run)
        stored = await self._artifacts.upload(
            name, target.artifact, target.sha256, target.size_bytes, _data(requests)
        )
        artifact = pb.RunArtifact(
            name=stored.name, size_bytes=stored.size_bytes, sha256=stored.sha256, uri=stored.uri
        )
        return pb.UploadRunArtifactResponse(artifact=artifact)

    async def DownloadRunArtifact(
        self, request: tracking_pb2.DownloadRunArtifactRequest, context: Any
    ) -> AsyncIterator[tracking_pb2.DownloadRunArtifactResponse]:
        async for data in self._artifacts.download(RunName.parse(request.run), request.artifact):
            yield tracking_pb2.DownloadRunArtifactResponse(data=data)


async def _data(requests: AsyncIterator[tracking_pb2.UploadRunArtifactRequest]) -> AsyncIterator[bytes]:
    async for request in requests:
        if request.WhichOneof("part") != "data":
            raise InvalidArtifact("Only the first message names a target; further messages have data.")
        yield request.data


def _body(request: Message) -> bytes:
    return request.SerializeToString(deterministic=True)
