"""`ports.Monitor` by gRPC."""

from __future__ import annotations

import math

import grpc

from flywheel_common.errors import FlywheelError
from flywheel_common.grpc.channel import from_rpc_error
from flywheel_common.telemetry.logs import get_logger
from flywheel_protos.monitor.v1.monitor_pb2_grpc import MonitorServiceStub
from flywheel_registry import convert_rollouts
from flywheel_registry.resources import Rollout
from flywheel_registry.rollout import Comparison

log = get_logger(__name__)


class MonitorPeer:
    """Asks CompareVariants. Whatever goes wrong is "no evidence", logged once per change of its reason."""

    def __init__(self, channel: grpc.aio.Channel, timeout_seconds: float) -> None:
        self._stub = MonitorServiceStub(channel)
        self._timeout = timeout_seconds
        self._trouble: dict[str, str] = {}

    async def compare(self, rollout: Rollout) -> Comparison | None:
        try:
            answer = await self._stub.CompareVariants(
                convert_rollouts.compare_request(rollout), timeout=self._timeout
            )
        except grpc.RpcError as error:
            mapped = from_rpc_error(error)
            self._note(rollout, mapped)
            return None
        comparison = convert_rollouts.comparison(answer)
        if any(map(math.isnan, comparison.values().values())):
            self._note(rollout, None)
            return None
        self._trouble.pop(rollout.name, None)
        return comparison

    def _note(self, rollout: Rollout, error: FlywheelError | None) -> None:
        reason = error.reason if error is not None else "NOT_A_NUMBER"
        if self._trouble.get(rollout.name) != reason:
            self._trouble[rollout.name] = reason
            log.warning(
                "no evidence",
                rollout=rollout.name,
                reason=reason,
                message=error.message if error else "a statistic is not a number",
            )
