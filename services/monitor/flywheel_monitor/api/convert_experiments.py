"""Experiments and their reports from and to protobuf."""

from __future__ import annotations

from flywheel_monitor.api.timestamps import timestamp, wall_time
from flywheel_monitor.experiments.experiment import (
    DEFAULT_ALPHA,
    Arm,
    Declaration,
    Experiment,
)
from flywheel_monitor.experiments.metric import COUNT, LATENCY, Metric, MetricKind, MetricRole
from flywheel_monitor.experiments.report import MetricReport, Report
from flywheel_monitor.experiments.tally import ArmTally
from flywheel_protos.monitor.v1 import experiment_pb2 as pb


def declaration_from_proto(message: pb.Experiment) -> Declaration:
    """What the message declares, with defaults for zeros; not checked yet."""
    arms = message.control, message.treatment
    equal = not any(arm.share for arm in arms)
    control, treatment = (Arm(a.source, a.release, 1.0 if equal else a.share) for a in arms)
    return Declaration(
        control,
        treatment,
        tuple(map(_metric_from_proto, message.metrics)),
        message.weeks,
        message.alpha or DEFAULT_ALPHA,
        message.generation,
    )


def _metric_from_proto(message: pb.ExperimentMetric) -> Metric:
    known = int(message.kind) in set(MetricKind) and int(message.role) in set(MetricRole)
    kind = MetricKind(int(message.kind)) if known else MetricKind.UNSPECIFIED
    numerator, denominator = message.numerator, message.denominator
    if kind is MetricKind.QUANTILE:
        numerator = numerator or LATENCY
    elif kind is MetricKind.RATIO:
        denominator = denominator or COUNT
    return Metric(
        message.name,
        MetricRole(int(message.role)) if known else MetricRole.UNSPECIFIED,
        kind,
        numerator,
        denominator,
        message.lower_is_better,
        message.max_loss,
        message.relative,
        message.minimum_effect,
        message.quantile or 0.99,
        message.covariate,
    )


def experiment_to_proto(e: Experiment) -> pb.Experiment:
    declared = e.declaration
    control, treatment = (
        pb.ExperimentArm(source=arm.source, release=arm.release, share=arm.share) for arm in declared.arms
    )
    return pb.Experiment(
        name=e.name,
        control=control,
        treatment=treatment,
        generation=declared.generation,
        metrics=[_metric_to_proto(m) for m in declared.metrics],
        weeks=declared.weeks,
        alpha=declared.alpha,
        state=int(e.state),  # type: ignore[arg-type]
        created_at=wall_time(e.created_at),
        created_by=e.created_by,
        concluded_at=wall_time(e.concluded_at),
        concluded_by=e.concluded_by,
        verdict=int(e.verdict),  # type: ignore[arg-type]
        reason=e.reason,
    )


def _metric_to_proto(m: Metric) -> pb.ExperimentMetric:
    return pb.ExperimentMetric(
        name=m.name,
        role=int(m.role),  # type: ignore[arg-type]
        kind=int(m.kind),  # type: ignore[arg-type]
        numerator=m.numerator,
        denominator=m.denominator,
        lower_is_better=m.lower_is_better,
        max_loss=m.max_loss,
        relative=m.relative,
        minimum_effect=m.minimum_effect,
        quantile=m.quantile if m.kind is MetricKind.QUANTILE else 0.0,
        covariate=m.covariate,
    )


def report_to_proto(e: Experiment, report: Report) -> pb.ExperimentReport:
    arms = zip(e.declaration.arms, report.tally.arms, strict=True)
    control, treatment = (_arm_to_proto(arm.release, tally) for arm, tally in arms)
    return pb.ExperimentReport(
        verdict=int(report.verdict),  # type: ignore[arg-type]
        reasons=report.reasons,
        control=control,
        treatment=treatment,
        sample_ratio_p_value=report.sample_ratio_p_value,
        crossed_subjects=report.tally.crossed,
        covered_from=timestamp(report.tally.first_us),
        covered_until=timestamp(report.tally.reached_us),
        metrics=[_metric_report_to_proto(m) for m in report.metrics],
    )


def _arm_to_proto(release: str, tally: ArmTally) -> pb.ArmReport:
    return pb.ArmReport(release=release, subjects=tally.subjects, predictions=tally.predictions)


def _metric_report_to_proto(m: MetricReport) -> pb.MetricReport:
    return pb.MetricReport(
        name=m.metric.name,
        role=int(m.metric.role),  # type: ignore[arg-type]
        control=m.control,
        treatment=m.treatment,
        difference=m.difference,
        lower=m.interval.lower,
        upper=m.interval.upper,
        passed=m.passed,
        failed=m.failed,
        detectable_effect=m.detectable,
        days_needed=m.days_needed,
        reason=m.text,
    )
