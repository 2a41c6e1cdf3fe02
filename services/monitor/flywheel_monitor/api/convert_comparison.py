"""Comparisons of variants as protobuf."""

from __future__ import annotations

from flywheel_monitor.api.timestamps import timestamp
from flywheel_monitor.comparison.rollout_evidence import DEFAULT_ALPHA, RolloutEvidence
from flywheel_monitor.comparison.step_verdicts import StepLimits, StepVerdict
from flywheel_monitor.comparison.variants import Variant
from flywheel_protos.monitor.v1 import monitor_pb2, step_verdict_pb2


def variant_to_proto(release: str, v: Variant) -> monitor_pb2.VariantStatistics:
    return monitor_pb2.VariantStatistics(
        release=release,
        predictions=v.predictions,
        labelled=v.labelled,
        error_rate=v.error_rate,
        latency_p99_ms=v.latency_p99_ms,
        score_mean=v.score_mean,
        score_stddev=v.score_stddev,
        log_loss=v.quality.log_loss,
        auc=v.quality.auc,
        brier=v.quality.brier,
        accuracy=v.quality.accuracy,
        rmse=v.quality.rmse,
        mean_absolute_error=v.quality.mean_absolute_error,
        cost_mean=v.cost_mean,
    )


def comparison_to_proto(
    champion: str, challenger: str, found: RolloutEvidence
) -> monitor_pb2.CompareVariantsResponse:
    c = found.comparison
    start, end = found.covered or (None, None)
    experiment = found.experiment
    return monitor_pb2.CompareVariantsResponse(
        champion=variant_to_proto(champion, c.champion),
        challenger=variant_to_proto(challenger, c.challenger),
        covered_from=timestamp(start),
        covered_until=timestamp(end),
        labelled=c.labelled,
        log_loss_delta=c.loss.delta,
        log_loss_delta_upper=c.loss.upper,
        log_loss_delta_lower=c.loss.lower,
        disagreement_rate=c.disagreement_rate,
        score_shift=c.score_shift,
        score_difference=c.score_difference,
        champion_right=c.right[0],
        challenger_right=c.right[1],
        experiment=experiment.experiment.name if experiment else "",
        experiment_verdict=int(experiment.verdict) if experiment else 0,  # type: ignore[arg-type]
        experiment_reason=experiment.reason if experiment else "",
        verdicts=map(verdict_to_proto, found.verdicts),
        generation=found.generation,
    )


def limits_from_proto(message: step_verdict_pb2.StepLimits) -> StepLimits:
    fields = ("max_loss_delta", "max_error_rate", "max_p99_ms", "max_score_shift")
    return StepLimits(
        **{name: getattr(message, name) for name in fields if message.HasField(name)},
        pass_alpha=message.pass_alpha or DEFAULT_ALPHA,
        breach_alpha=message.breach_alpha or DEFAULT_ALPHA,
        tightest_at=message.tightest_at,
    )


def verdict_to_proto(found: StepVerdict) -> step_verdict_pb2.StepVerdict:
    return step_verdict_pb2.StepVerdict(
        metric=int(found.metric),  # type: ignore[arg-type]
        verdict=int(found.verdict),  # type: ignore[arg-type]
        limit=found.limit,
        value=found.value,
        rows=found.rows,
        lower=found.lower,
        upper=found.upper,
    )
