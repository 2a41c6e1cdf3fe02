"""Drift reports as protobuf."""

from __future__ import annotations

from dataclasses import asdict

from flywheel_monitor.api.convert_performance import estimate_to_proto
from flywheel_monitor.api.timestamps import timestamp
from flywheel_monitor.drift.distribution import Distribution
from flywheel_monitor.drift.statistics import FeatureDrift
from flywheel_monitor.evaluation.report import Report
from flywheel_monitor.evaluation.report_lookup import Distributions
from flywheel_protos.monitor.v1 import distribution_pb2, monitor_pb2, projection_drift_pb2


def feature_to_proto(d: FeatureDrift) -> monitor_pb2.FeatureDrift:
    return monitor_pb2.FeatureDrift(
        feature=d.feature,
        psi=d.psi,
        psi_corrected=d.psi_corrected,
        ks=d.ks,
        ks_p_value=d.ks_p_value,
        chi_square=d.chi_square,
        chi_square_p_value=d.chi_square_p_value,
        adjusted_p_value=d.adjusted_p_value,
        mean_shift=d.mean_shift,
        null_rate=d.null_rate,
        reference_null_rate=d.reference_null_rate,
        unseen_rate=d.unseen_rate,
        reference_unseen_rate=d.reference_unseen_rate,
        chi_square_degrees=d.chi_square_degrees,
        cramers_v=d.cramers_v,
        jensen_shannon=d.jensen_shannon,
        wasserstein=d.wasserstein,
        effective_rows=d.effective_rows,
        verdict=int(d.verdict),  # type: ignore[arg-type]
        reason=d.reason,
        cause=d.cause,
        silenced=d.silenced,
        projection_shift=d.projection_shift,
        mean_shift_z=d.mean_shift_z,
        psi_epsilon=d.psi_epsilon,
    )


def report_to_proto(report: Report) -> monitor_pb2.DriftReport:
    score = report.score
    return monitor_pb2.DriftReport(
        model_version=report.model_version,
        window_start=timestamp(report.span.start_us),
        window_end=timestamp(report.span.end_us),
        predictions=report.predictions,
        features=[feature_to_proto(f) for f in report.features],
        score_mean=score.mean,
        score_stddev=score.stddev,
        reference_score_mean=score.reference_mean,
        reference_score_stddev=score.reference_stddev,
        score_shift=score.shift,
        score_z=score.z,
        score_psi=score.psi,
        verdict=int(report.verdict),  # type: ignore[arg-type]
        reason=report.reason,
        reference_hash=report.reference_hash,
        label_mean=report.quality.label_mean,
        label_shift=report.label_shift,
        late_predictions=report.late_predictions,
        estimate=None if report.estimate is None else estimate_to_proto(report.estimate),
        projections=None
        if score.projections is None
        else projection_drift_pb2.ProjectionDrift(**asdict(score.projections)),
        causes=report.causes,
        labelled=report.quality.labelled,
        auc=report.quality.auc,
        log_loss=report.quality.log_loss,
    )


def distributions_to_proto(found: Distributions) -> distribution_pb2.GetDistributionsResponse:
    return distribution_pb2.GetDistributionsResponse(
        model_version=found.model_version,
        window_start=timestamp(found.span.start_us),
        window_end=timestamp(found.span.end_us),
        predictions=found.predictions,
        features=[_distribution(one) for one in found.features],
        scores=_distribution(found.scores),
        segments=found.segments,
    )


def _distribution(found: Distribution) -> distribution_pb2.Distribution:
    return distribution_pb2.Distribution(
        name=found.name,
        edges=found.edges,
        categories=found.categories,
        reference=found.reference,
        observed=found.observed,
        reference_missing=found.reference_missing,
        observed_missing=found.observed_missing,
        reference_unseen=found.reference_unseen,
        observed_unseen=found.observed_unseen,
        vector=found.vector,
    )
