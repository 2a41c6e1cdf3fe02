"""Performance as protobuf."""

from __future__ import annotations

from flywheel_monitor.api.timestamps import timestamp
from flywheel_monitor.performance.estimate import Estimate
from flywheel_monitor.performance.served import ServedPerformance
from flywheel_protos.monitor.v1 import monitor_pb2
from flywheel_protos.monitor.v1.performance_estimate_pb2 import PerformanceEstimate


def performance_to_proto(p: ServedPerformance) -> monitor_pb2.Performance:
    return monitor_pb2.Performance(
        model_version=p.model_version,
        predictions=p.predictions,
        labelled=p.quality.labelled,
        coverage=p.quality.labelled / p.predictions if p.predictions else 0.0,
        auc=p.quality.auc,
        log_loss=p.quality.log_loss,
        brier=p.quality.brier,
        calibration_error=p.quality.calibration_error,
        label_mean=p.quality.label_mean or 0.0,
        accuracy=p.quality.accuracy,
        macro_f1=p.quality.macro_f1,
        rmse=p.quality.rmse,
        mean_absolute_error=p.quality.mean_absolute_error,
        r2=p.quality.r2,
        cost_mean=p.cost_mean,
        average_precision=p.quality.average_precision,
        auc_error=p.quality.auc_error,
        log_loss_error=p.quality.log_loss_error,
        brier_error=p.quality.brier_error,
        average_precision_error=p.quality.average_precision_error,
        calibration_error_error=p.quality.calibration_error_error,
        calibration_error_by_chance=p.quality.calibration_error_by_chance,
        accuracy_error=p.quality.accuracy_error,
        rmse_error=p.quality.rmse_error,
        effective_labels=p.quality.effective_labels,
        label_delay_p50_seconds=p.quality.label_delay_p50_seconds,
        label_delay_p90_seconds=p.quality.label_delay_p90_seconds,
        score_mean=p.score_mean,
        latency_p50_ms=p.latency_p50_ms,
        latency_p99_ms=p.latency_p99_ms,
        error_rate=p.error_rate,
        fallback_rate=p.fallback_rate,
        first_event=timestamp(p.first_event_us),
        last_event=timestamp(p.last_event_us),
        estimate=None if p.estimate is None else estimate_to_proto(p.estimate),
    )


def estimate_to_proto(found: Estimate) -> PerformanceEstimate:
    labelled = found.labelled
    return PerformanceEstimate(
        auc=found.expected.auc,
        accuracy=found.expected.accuracy,
        log_loss=found.expected.log_loss,
        labelled_auc=labelled.auc if labelled else None,
        labelled_accuracy=labelled.accuracy if labelled else None,
        labelled_log_loss=labelled.log_loss if labelled else None,
        realised_accuracy=found.realised_accuracy,
        warning=found.warning,
    )
