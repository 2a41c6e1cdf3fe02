"""Protobuf ↔ domain."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from flywheel_common.arrays import Array, Ints
from flywheel_common.columns import check_table, from_table
from flywheel_common.errors import InvalidArgument
from flywheel_common.kafka.envelope import build_event
from flywheel_monitor.alert import Alert, Announcement
from flywheel_monitor.batches import OutcomeColumns, PredictionColumns, Role, VariantKey
from flywheel_monitor.bins import ColumnReference
from flywheel_monitor.comparison import Variant
from flywheel_monitor.drift import FeatureDrift
from flywheel_monitor.evaluation import Report
from flywheel_monitor.policy import MonitorPolicy
from flywheel_monitor.queries import ServedPerformance, VariantComparison
from flywheel_monitor.resource_names import ModelName, VersionName
from flywheel_protos.events.v1 import lifecycle_pb2, prediction_pb2
from flywheel_protos.events.v1.event_pb2 import Event
from flywheel_protos.feature.v1 import training_set_pb2
from flywheel_protos.monitor.v1 import monitor_pb2
from flywheel_protos.types.v1 import value_pb2

_EVENTS = uuid.UUID("6b1d9a5e-7f0c-5a52-9d0e-2f1f3d7c8a41")
"""Namespace of the ids of drift events."""
_EARLIEST_US = -62_135_596_800_000_000
_LATEST_US = 253_402_300_799_000_000


def prediction_columns(batch: prediction_pb2.PredictionBatch, payload: bytes) -> PredictionColumns:
    """Raises InvalidArgument MALFORMED_BATCH (or INVALID_COLUMN, INVALID_NAME) when lengths, names or values do not fit."""
    n = len(batch.prediction_ids)
    version = VersionName.parse(batch.model_version)
    if batch.model != version.model_name:
        raise _malformed(f"model {batch.model!r} is not that of version {batch.model_version!r}")
    role = int(batch.role)
    if role not in (1, 2, 3):
        raise _malformed("the role is not set")
    sources = _packed(batch.sources, "u1", n, "sources").astype(np.int64)
    scores = _packed(batch.scores, "<f8", n, "scores").astype(np.float64)
    reasons = (
        np.array([bool(r) for r in batch.error_reasons], np.bool_)
        if batch.error_reasons
        else np.zeros(n, np.bool_)
    )
    if len(reasons) != n or (batch.segments and len(batch.segments) != n):
        raise _malformed("error_reasons or segments have another length than prediction_ids")
    if n and (not all(batch.prediction_ids) or (sources > 4).any()):
        raise _malformed("an id is empty or a source unknown")
    if batch.features.columns and batch.features.row_count != n:
        raise _malformed("features have another length than prediction_ids")
    for table in (batch.entities, batch.request_fields, batch.applied_offsets):
        # Only the archive looks into these, where it is too late to refuse the batch.
        check_table(table, n)
    return PredictionColumns(
        key=VariantKey(batch.model, batch.model_version, batch.release, batch.rollout, Role(role)),
        ids=list(batch.prediction_ids),
        event_times=_times(batch.event_times, n),
        scores=scores,
        decisions=_packed(batch.decisions, "u1", n, "decisions") != 0,
        sources=sources,
        latencies_ms=_packed(batch.latencies_ms, "<f4", n, "latencies_ms").astype(np.float64),
        failed=reasons | (sources == prediction_pb2.PREDICTION_SOURCE_ERROR),
        segments=tuple(batch.segments) if batch.segments else ("",) * n,
        features=from_table(batch.features),
        payload=payload,
    )


def outcome_columns(batch: prediction_pb2.OutcomeBatch) -> OutcomeColumns:
    """Raises InvalidArgument MALFORMED_BATCH (or INVALID_NAME)."""
    n = len(batch.prediction_ids)
    ModelName.parse(batch.model)
    values = _packed(batch.values, "<f8", n, "values").astype(np.float64)
    if (
        not batch.name
        or len(batch.outcome_ids) != n
        or not all(batch.prediction_ids)
        or not all(batch.outcome_ids)
    ):
        raise _malformed("the name or an id is empty, or outcome_ids have another length than prediction_ids")
    if not np.isfinite(values).all():
        raise _malformed("a value is not finite")
    return OutcomeColumns(
        batch.model,
        batch.name,
        list(batch.prediction_ids),
        list(batch.outcome_ids),
        _times(batch.event_times, n),
        values,
    )


def _times(packed: bytes, n: int) -> Ints:
    times = _packed(packed, "<i8", n, "event_times").astype(np.int64)
    if n and (times.min() < _EARLIEST_US or times.max() > _LATEST_US):
        raise _malformed("an event time lies outside the years 1 to 9999")
    return times


def _packed(data: bytes, dtype: str, n: int, what: str) -> Array:
    kind = np.dtype(dtype)
    if len(data) != n * kind.itemsize:
        raise _malformed(f"{what} has {len(data)} bytes where {n} rows need {n * kind.itemsize}")
    return np.frombuffer(data, kind)


def _malformed(why: str) -> InvalidArgument:
    return InvalidArgument(f"The batch is malformed: {why}.", reason="MALFORMED_BATCH")


_CATEGORICAL = {value_pb2.DATA_TYPE_STRING, value_pb2.DATA_TYPE_BOOL}
_NUMERIC = {
    value_pb2.DATA_TYPE_INT64,
    value_pb2.DATA_TYPE_FLOAT32,
    value_pb2.DATA_TYPE_FLOAT64,
    value_pb2.DATA_TYPE_TIMESTAMP,
}


def column_references(
    profile: Sequence[training_set_pb2.ColumnProfile], inputs: set[str]
) -> list[ColumnReference]:
    """The profiles of the model's inputs; columns of other types (lists, vectors, blobs) are not watched."""
    found = []
    for p in profile:
        if p.name not in inputs:
            continue
        numeric = p.data_type in _NUMERIC or (
            p.data_type in _CATEGORICAL and bool(p.bin_counts) and not p.categories
        )
        if not numeric and p.data_type not in _CATEGORICAL:
            continue
        found.append(
            ColumnReference(
                name=p.name,
                numeric=numeric,
                counts=tuple(p.bin_counts) if numeric else tuple(p.category_counts),
                null_count=p.null_count,
                edges=tuple(p.edges) if numeric else (),
                categories=() if numeric else tuple(p.categories),
                other_count=0 if numeric else p.other_count,
                mean=p.mean,
                stddev=p.stddev,
                minimum=p.min,
                maximum=p.max,
            )
        )
    return found


def policy_from_proto(policy: monitor_pb2.MonitorPolicy) -> MonitorPolicy:
    """Unset and zero fields take their defaults. Checks come later (`MonitorPolicy.checked`)."""
    d = MonitorPolicy()
    return MonitorPolicy(
        window_us=_micros(policy.window) if policy.HasField("window") else d.window_us,
        lateness_us=_micros(policy.lateness) if policy.HasField("lateness") else d.lateness_us,
        min_predictions=policy.min_predictions or d.min_predictions,
        min_labels=policy.min_labels or d.min_labels,
        psi_warning=policy.psi_warning or d.psi_warning,
        psi_alert=policy.psi_alert or d.psi_alert,
        fdr=policy.fdr or d.fdr,
        k_of=policy.k_of or (min(d.k_of, policy.m_windows) if policy.m_windows else d.k_of),
        m_windows=policy.m_windows or max(d.m_windows, policy.k_of),
        score_shift=policy.score_shift or d.score_shift,
        auc_drop=policy.auc_drop or d.auc_drop,
        log_loss_ratio=policy.log_loss_ratio or d.log_loss_ratio,
        data_quality_rate=policy.data_quality_rate or d.data_quality_rate,
        label_shift=policy.label_shift or d.label_shift,
    )


def policy_to_proto(model: str, policy: MonitorPolicy) -> monitor_pb2.MonitorPolicy:
    return monitor_pb2.MonitorPolicy(
        model=model,
        window=duration(policy.window_us),
        lateness=duration(policy.lateness_us),
        min_predictions=policy.min_predictions,
        min_labels=policy.min_labels,
        psi_warning=policy.psi_warning,
        psi_alert=policy.psi_alert,
        fdr=policy.fdr,
        k_of=policy.k_of,
        m_windows=policy.m_windows,
        score_shift=policy.score_shift,
        auc_drop=policy.auc_drop,
        log_loss_ratio=policy.log_loss_ratio,
        data_quality_rate=policy.data_quality_rate,
        label_shift=policy.label_shift,
    )


def _micros(value: Duration) -> int:
    return value.ToMicroseconds()


def duration(micros: int) -> Duration:
    result = Duration()
    result.FromMicroseconds(micros)
    return result


def timestamp(micros: int | None) -> Timestamp | None:
    """None stays unset."""
    if micros is None:
        return None
    result = Timestamp()
    result.FromMicroseconds(micros)
    return result


def wall(at: datetime | None) -> Timestamp | None:
    if at is None:
        return None
    result = Timestamp()
    result.FromDatetime(at.astimezone(UTC))
    return result


def micros_of(message: object, field: str) -> int | None:
    """A Timestamp field in microseconds; None when it is unset. Raises InvalidArgument INVALID_TIME."""
    if not message.HasField(field):  # type: ignore[attr-defined]
        return None
    value: Timestamp = getattr(message, field)
    if not 0 <= value.nanos < 1_000_000_000:
        raise InvalidArgument(f"{field} is not a valid timestamp.", reason="INVALID_TIME", field=field)
    return value.ToMicroseconds()


def datetime_of(micros: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=micros)


def drift_detected(drift: Announcement) -> Event:
    """The event, its id made of what it is about, so that a repeat carries the same one."""
    span = drift.span
    payload = lifecycle_pb2.DriftDetected(
        alert=drift.alert,
        model=drift.model,
        model_version=drift.model_version,
        window_start=timestamp(span.start_us),
        window_end=timestamp(span.end_us),
        kind=drift.kind.value,
        data_quality_cause=drift.data_quality_cause,
        features=[
            lifecycle_pb2.DriftedFeature(feature=f.feature, psi=f.psi, ks=f.ks) for f in drift.features
        ],
        summary=drift.summary,
        reference_hash=drift.reference_hash,
    )
    about = f"{drift.model_version}/{drift.kind.value}/{drift.reference_hash}/{span.start_us}-{span.end_us}"
    return build_event(
        payload,
        source="flywheel-monitor",
        key=drift.model,
        event_time=datetime_of(span.end_us),
        event_id=str(uuid.uuid5(_EVENTS, about)),
    )


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
        verdict=int(d.verdict),  # type: ignore[arg-type]
        reason=d.reason,
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
    )


def alert_to_proto(alert: Alert) -> monitor_pb2.Alert:
    return monitor_pb2.Alert(
        name=alert.name,
        model=alert.model,
        model_version=alert.model_version,
        kind=alert.kind.value,
        state=int(alert.state),  # type: ignore[arg-type]
        window_start=timestamp(alert.span.start_us),
        window_end=timestamp(alert.span.end_us),
        last_window_end=timestamp(alert.last_window_end_us),
        features=[feature_to_proto(f) for f in alert.features],
        reason=alert.reason,
        opened_at=wall(alert.opened_at),
        resolved_at=wall(alert.resolved_at),
        acknowledged_by=alert.acknowledged_by,
        resolved_reason=alert.resolved_reason,
    )


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
        score_mean=p.score_mean,
        latency_p50_ms=p.latency_p50_ms,
        latency_p99_ms=p.latency_p99_ms,
        error_rate=p.error_rate,
        fallback_rate=p.fallback_rate,
        first_event=timestamp(p.first_event_us),
        last_event=timestamp(p.last_event_us),
    )


def variant_to_proto(release: str, v: Variant) -> monitor_pb2.VariantStatistics:
    return monitor_pb2.VariantStatistics(
        release=release,
        predictions=v.predictions,
        labelled=v.labelled,
        error_rate=v.error_rate,
        latency_p99_ms=v.latency_p99_ms,
        score_mean=v.score_mean,
        score_stddev=v.score_stddev,
        log_loss=v.log_loss,
        auc=v.auc,
        brier=v.brier,
    )


def comparison_to_proto(
    champion: str, challenger: str, found: VariantComparison
) -> monitor_pb2.CompareVariantsResponse:
    c = found.comparison
    return monitor_pb2.CompareVariantsResponse(
        champion=variant_to_proto(champion, c.champion),
        challenger=variant_to_proto(challenger, c.challenger),
        first_event=timestamp(found.first_event_us),
        last_event=timestamp(found.last_event_us),
        labelled=c.labelled,
        log_loss_delta=c.log_loss.delta,
        log_loss_delta_upper=c.log_loss.upper,
        log_loss_delta_lower=c.log_loss.lower,
        disagreement_rate=c.disagreement_rate,
        score_shift=c.score_shift,
    )
