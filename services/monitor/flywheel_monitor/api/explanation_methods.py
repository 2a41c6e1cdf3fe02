"""The method of MonitorService that explains drift."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from flywheel_common.postgres.transactions import Store
from flywheel_monitor.api.timestamps import micros_of, timestamp
from flywheel_monitor.drift.explanation import FeatureExplanation
from flywheel_monitor.evaluation.explanation_lookup import find_explanation
from flywheel_protos.monitor.v1 import explanation_pb2 as pb


class ExplanationMethods:
    """Part of the servicer."""

    _store: Store[Any]
    _pane_us: int

    async def ExplainDrift(self, request: pb.ExplainDriftRequest, context: Any) -> pb.ExplainDriftResponse:
        found = await find_explanation(
            self._store,
            request.name,
            start_us=micros_of(request, "start_time"),
            end_us=micros_of(request, "end_time"),
            segment=request.segment,
            pane_us=self._pane_us,
        )
        return pb.ExplainDriftResponse(
            model_version=found.model_version,
            window_start=timestamp(found.span.start_us),
            window_end=timestamp(found.span.end_us),
            predictions=found.predictions,
            features=[_feature(one) for one in found.features],
            has_importance=found.has_importance,
        )


def _feature(found: FeatureExplanation) -> pb.FeatureExplanation:
    return pb.FeatureExplanation(
        feature=found.feature,
        importance=found.importance,
        drift=found.drift,
        impact=found.impact,
        psi=found.psi,
        bins=[pb.MovedBin(**asdict(one)) for one in found.bins],
        segments=[pb.SegmentPart(**asdict(one)) for one in found.segments],
        null_rate=found.null_rate,
        reference_null_rate=found.reference_null_rate,
        unseen_rate=found.unseen_rate,
        reference_unseen_rate=found.reference_unseen_rate,
    )
