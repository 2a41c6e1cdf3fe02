"""The method of MonitorService that replays a range."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from flywheel_monitor.api.errors import InvalidTime
from flywheel_monitor.api.timestamps import micros_of, timestamp
from flywheel_monitor.models.names import ModelName
from flywheel_monitor.replay.difference import ReplayProgress
from flywheel_monitor.replay.replay import Replays
from flywheel_monitor.windows.span import whole_panes
from flywheel_protos.monitor.v1 import replay_pb2 as pb


class ReplayMethods:
    """Part of the servicer."""

    _replays: Replays
    _pane_us: int

    async def ReplayWindows(
        self, request: pb.ReplayWindowsRequest, context: Any
    ) -> AsyncIterator[pb.ReplayWindowsResponse]:
        model = str(ModelName.parse(request.model))
        start, end = micros_of(request, "start_time"), micros_of(request, "end_time")
        if start is None or end is None:
            raise InvalidTime("start_time and end_time must be set.", field="start_time")
        span = whole_panes(start, end, self._pane_us)
        async with aclosing(self._replays.run(model, span)) as run:
            async for progress in run:
                yield _progress(progress)


def _progress(progress: ReplayProgress) -> pb.ReplayWindowsResponse:
    return pb.ReplayWindowsResponse(
        records=progress.records,
        records_total=progress.records_total,
        finished=progress.finished,
        panes=progress.panes,
        reports=progress.reports,
        differences=[
            pb.ReplayDifference(
                model_version=one.model_version,
                start_time=timestamp(one.span.start_us),
                end_time=timestamp(one.span.end_us),
                what=one.what,
            )
            for one in progress.differences
        ],
        complete_from=timestamp(progress.complete_from_us),
    )
