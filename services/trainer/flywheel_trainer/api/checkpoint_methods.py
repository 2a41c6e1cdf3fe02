"""The methods of TrainerService about checkpoints."""

from __future__ import annotations

from typing import Any

from flywheel_common.grpc.attempt_tokens import current_attempt
from flywheel_common.paging import page_size
from flywheel_protos.trainer.v1 import checkpoint_pb2 as pb
from flywheel_trainer.api.convert_times import moment, timestamp
from flywheel_trainer.checkpoints.checkpoint import Checkpoint
from flywheel_trainer.checkpoints.use_cases import JobCheckpoints
from flywheel_trainer.jobs.job import JobName


class CheckpointMethods:
    """Mixin of the servicer."""

    _checkpoints: JobCheckpoints

    async def RecordCheckpoints(
        self, request: pb.RecordCheckpointsRequest, context: Any
    ) -> pb.RecordCheckpointsResponse:
        name = JobName.parse(request.parent)
        checkpoints = [(one.uri, _from_proto(one)) for one in request.checkpoints]
        await self._checkpoints.record(name, request.folder_uri, checkpoints, current_attempt())
        return pb.RecordCheckpointsResponse()

    async def ListCheckpoints(
        self, request: pb.ListCheckpointsRequest, context: Any
    ) -> pb.ListCheckpointsResponse:
        size = page_size(request.page_size, default=100, maximum=1000)
        name = JobName.parse(request.parent)
        page = await self._checkpoints.list(name, size, request.page_token)
        return pb.ListCheckpointsResponse(
            checkpoints=[_to_proto(self._checkpoints.uri(name, one), one) for one in page.items],
            next_page_token=page.next_page_token,
        )


def _from_proto(message: pb.Checkpoint) -> Checkpoint:
    """The record; its place comes from its uri."""
    return Checkpoint(
        folder="",
        name="",
        step=message.step,
        attempt=message.attempt,
        world_size=message.world_size,
        size_bytes=message.size_bytes,
        created_at=moment(message.created_at),
        metrics=dict(message.metrics),
    )


def _to_proto(uri: str, checkpoint: Checkpoint) -> pb.Checkpoint:
    return pb.Checkpoint(
        uri=uri,
        step=checkpoint.step,
        attempt=checkpoint.attempt,
        world_size=checkpoint.world_size,
        size_bytes=checkpoint.size_bytes,
        created_at=timestamp(checkpoint.created_at),
        metrics=checkpoint.metrics,
    )
