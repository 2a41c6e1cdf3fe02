"""The experiments of the monitor service."""

from __future__ import annotations

from collections.abc import Sequence

import grpc

from flywheel_common.deadline import call_timeout
from flywheel_common.grpc.channel import from_rpc_error
from flywheel_common.telemetry.logs import get_logger
from flywheel_protos.monitor.v1 import experiment_pb2 as pb
from flywheel_protos.monitor.v1.monitor_pb2_grpc import MonitorServiceStub
from flywheel_registry.evidence.experiment_verdict import ExperimentVerdict

log = get_logger(__name__)

NEWEST = 1000
_PREFIX = "EXPERIMENT_VERDICT_"


class GrpcExperiments:
    """`Experiments` by ListExperiments, and GetExperiment for those that run."""

    def __init__(self, channel: grpc.aio.Channel, timeout_seconds: float) -> None:
        self._stub = MonitorServiceStub(channel)
        self._timeout_seconds = timeout_seconds

    async def verdicts(self, release: str) -> Sequence[ExperimentVerdict] | None:
        request = pb.ListExperimentsRequest(
            parent=release.rpartition("/releases/")[0], treatment_release=release, page_size=NEWEST
        )
        try:
            listed = await self._stub.ListExperiments(request, timeout=call_timeout(self._timeout_seconds))
            # At most ten experiments of a model run.
            return [await self._verdict(one) for one in listed.experiments]
        except grpc.RpcError as error:
            log.warning("no verdicts of experiments", release=release, reason=from_rpc_error(error).reason)
            return None

    async def _verdict(self, one: pb.Experiment) -> ExperimentVerdict:
        if one.state == pb.EXPERIMENT_STATE_CONCLUDED:
            return ExperimentVerdict(one.name, _text(one.verdict), one.reason)
        request = pb.GetExperimentRequest(name=one.name)
        answer = await self._stub.GetExperiment(request, timeout=call_timeout(self._timeout_seconds))
        if answer.experiment.state == pb.EXPERIMENT_STATE_CONCLUDED:  # since it was listed
            return await self._verdict(answer.experiment)
        return ExperimentVerdict(one.name, _text(answer.report.verdict), "; ".join(answer.report.reasons))


def _text(verdict: int) -> str:
    return pb.ExperimentVerdict.Name(verdict).removeprefix(_PREFIX)
