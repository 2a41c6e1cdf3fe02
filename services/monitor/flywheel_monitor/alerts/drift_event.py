"""The `drift.detected` event."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from flywheel_common.kafka.envelope import build_event
from flywheel_common.value import from_micros
from flywheel_monitor.alerts.lifecycle import Kind
from flywheel_monitor.drift.statistics import FeatureDrift
from flywheel_monitor.windows.span import Span
from flywheel_protos.events.v1 import lifecycle_pb2
from flywheel_protos.events.v1.event_pb2 import Event

_EVENT_IDS = uuid.UUID("6b1d9a5e-7f0c-5a52-9d0e-2f1f3d7c8a41")
"""Namespace of the ids of drift events."""


@dataclass(frozen=True)
class DriftAnnouncement:
    """Major drift of one window."""

    alert: str
    model: str
    model_version: str
    version_id: int
    kind: Kind
    span: Span
    data_quality_cause: bool
    features: Sequence[FeatureDrift]
    summary: str
    reference_hash: str


def drift_detected(drift: DriftAnnouncement) -> Event:
    """The event. Its id follows from (version, kind, reference, window), so that a repeat has the same id."""
    span = drift.span
    payload = lifecycle_pb2.DriftDetected(
        alert=drift.alert,
        model=drift.model,
        model_version=drift.model_version,
        window_start=from_micros(span.start_us),
        window_end=from_micros(span.end_us),
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
        event_time=from_micros(span.end_us),
        event_id=str(uuid.uuid5(_EVENT_IDS, about)),
    )
