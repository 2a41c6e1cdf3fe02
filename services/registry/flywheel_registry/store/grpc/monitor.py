"""The monitor service as the source of rollout evidence."""

from __future__ import annotations

import math
from collections import OrderedDict
from datetime import UTC, datetime

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from flywheel_common.grpc.channel import from_rpc_error
from flywheel_common.telemetry.logs import get_logger
from flywheel_protos.monitor.v1 import experiment_pb2, monitor_pb2, step_verdict_pb2
from flywheel_protos.monitor.v1.monitor_pb2_grpc import MonitorServiceStub
from flywheel_registry.evidence.experiment_verdict import ExperimentVerdict
from flywheel_registry.releases.names import ReleaseName
from flywheel_registry.rollouts.comparison import Comparison, Variant
from flywheel_registry.rollouts.rollout import Rollout
from flywheel_registry.rollouts.state_machine import RolloutState
from flywheel_registry.rollouts.step_verdict import LimitVerdict, StepMetric, StepVerdict, step_limits

log = get_logger(__name__)

_FIELDS = {
    StepMetric.LOSS_DELTA: "max_loss_delta",
    StepMetric.ERROR_RATE: "max_error_rate",
    StepMetric.P99_MS: "max_p99_ms",
    StepMetric.SCORE_SHIFT: "max_score_shift",
}
MAX_REMEMBERED = 1000
"""Rollouts whose longer timeout is remembered."""


class GrpcMonitor:
    """`Monitor` by CompareVariants. A failed call is no evidence; it is logged when its reason changes.

    The comparison of a busy model can take longer than `timeout_seconds`: after each call that did not end in
    time, the next one for this rollout may take twice as long, up to `longest_timeout_seconds`.
    """

    def __init__(
        self, channel: grpc.aio.Channel, timeout_seconds: float, longest_timeout_seconds: float = 60.0
    ) -> None:
        self._stub = MonitorServiceStub(channel)
        self._timeout = timeout_seconds
        self._longest = max(timeout_seconds, longest_timeout_seconds)
        self._timeouts: OrderedDict[str, float] = OrderedDict()
        self._logged_reasons: dict[str, str] = {}

    async def compare(self, rollout: Rollout) -> Comparison | None:
        timeout = self._timeouts.get(rollout.name, self._timeout)
        try:
            response = await self._stub.CompareVariants(compare_request(rollout), timeout=timeout)
        except grpc.RpcError as error:
            mapped = from_rpc_error(error)
            if mapped.code is grpc.StatusCode.DEADLINE_EXCEEDED:
                self._allow(rollout.name, min(2 * timeout, self._longest))
            self._log_missing(rollout, mapped.reason, mapped.message)
            return None
        if response.generation != rollout.generation or not rollout.generation:
            self._log_missing(rollout, "OTHER_STEP", "the comparison is not of this step alone")
            return None
        comparison = parse_comparison(response)
        if any(map(math.isnan, comparison.values().values())):
            self._log_missing(rollout, "NOT_A_NUMBER", "a statistic is not a number")
            return None
        self._logged_reasons.pop(rollout.name, None)
        return comparison

    def _allow(self, rollout: str, seconds: float) -> None:
        """Remember the timeout of a rollout; those of the newest 1,000 slow ones are kept."""
        self._timeouts[rollout] = seconds
        if len(self._timeouts) > MAX_REMEMBERED:
            self._timeouts.popitem(last=False)

    def _log_missing(self, rollout: Rollout, reason: str, message: str) -> None:
        if self._logged_reasons.get(rollout.name) != reason:
            self._logged_reasons[rollout.name] = reason
            log.warning("no evidence", rollout=rollout.name, reason=reason, message=message)


def compare_request(rollout: Rollout) -> monitor_pb2.CompareVariantsRequest:
    """Return the request for a rollout's current step: its predictions, and verdicts on its limits."""
    wanted = step_limits(rollout.policy, rollout.progress)
    in_shadow = rollout.progress.state is RolloutState.SHADOW
    return monitor_pb2.CompareVariantsRequest(
        rollout=rollout.name,
        champion_release=ReleaseName.of(rollout.model, rollout.champion),
        challenger_release=ReleaseName.of(rollout.model, rollout.challenger),
        mode=monitor_pb2.COMPARISON_MODE_SHADOW if in_shadow else monitor_pb2.COMPARISON_MODE_CANARY,
        generation=rollout.generation,
        limits=step_verdict_pb2.StepLimits(
            **{_FIELDS[metric]: limit for metric, limit in wanted.limits.items()},
            pass_alpha=wanted.pass_level,
            breach_alpha=wanted.breach_level,
            tightest_at=wanted.tightest_at,
        ),
    )


def parse_comparison(message: monitor_pb2.CompareVariantsResponse) -> Comparison:
    """Convert the monitor's response."""
    return Comparison(
        champion=_variant(message.champion),
        challenger=_variant(message.challenger),
        covered_from=_utc(message.covered_from) if message.HasField("covered_from") else None,
        covered_until=_utc(message.covered_until) if message.HasField("covered_until") else None,
        labelled=message.labelled,
        log_loss_delta=message.log_loss_delta,
        score_shift=message.score_shift,
        verdicts=dict(map(_verdict, message.verdicts)),
        experiment=_experiment(message),
    )


def _verdict(message: step_verdict_pb2.StepVerdict) -> tuple[StepMetric, StepVerdict]:
    metric = step_verdict_pb2.StepMetric.Name(message.metric).removeprefix("STEP_METRIC_")
    verdict = step_verdict_pb2.LimitVerdict.Name(message.verdict).removeprefix("LIMIT_VERDICT_")
    return StepMetric(metric), StepVerdict(
        LimitVerdict(verdict),
        message.limit,
        message.value,
        message.rows,
        message.lower if message.HasField("lower") else None,
        message.upper if message.HasField("upper") else None,
    )


def _experiment(message: monitor_pb2.CompareVariantsResponse) -> ExperimentVerdict | None:
    if not message.experiment:
        return None
    name = experiment_pb2.ExperimentVerdict.Name(message.experiment_verdict)
    verdict = name.removeprefix("EXPERIMENT_VERDICT_")
    return ExperimentVerdict(message.experiment, verdict, message.experiment_reason)


def _utc(stamp: Timestamp) -> datetime:
    return stamp.ToDatetime(tzinfo=UTC)


def _variant(message: monitor_pb2.VariantStatistics) -> Variant:
    return Variant(
        predictions=message.predictions,
        labelled=message.labelled,
        error_rate=message.error_rate,
        latency_p99_ms=message.latency_p99_ms,
        score_mean=message.score_mean,
        score_stddev=message.score_stddev,
        log_loss=message.log_loss if message.HasField("log_loss") else None,
    )
