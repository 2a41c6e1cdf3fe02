"""Protobuf ↔ domain: requests and answers, and the registry's desired state."""

from __future__ import annotations

from collections.abc import Iterable

from flywheel_common.value import from_python
from flywheel_inference.models.feature_block import PRESENT, STATUS_NAMES
from flywheel_inference.prediction.predictor import Answer
from flywheel_inference.serving.status import ServingStatus
from flywheel_protos.inference.v1 import inference_pb2 as pb

"""The kind of Value that is already of the type: no coercion needed."""


def to_response(answer: Answer) -> pb.PredictResponse:
    item, scored = answer.item, answer.scored
    response = pb.PredictResponse(
        prediction_id=item.prediction_id,
        score=answer.score,
        decision=answer.decision,
        model_version=answer.lane.spec.model_version,
        release=answer.lane.spec.name,
        role=answer.role,  # type: ignore[arg-type]
        source=answer.source,  # type: ignore[arg-type]
        degraded=scored is None,
        degraded_reason=answer.reason,
    )
    timing = response.timing
    timing.total_ms = answer.total_ms
    if scored is not None:
        timing.queue_ms = scored.queue_ms
        timing.features_ms = scored.batch.features_ms
        timing.model_ms = scored.batch.model_ms
        if scored.flagged or item.call.include_features:
            _add_features(response, answer)
    return response


def _add_features(response: pb.PredictResponse, answer: Answer) -> None:
    scored = answer.scored
    assert scored is not None
    block, row = scored.batch.block, scored.row
    for place, column in enumerate(block.columns):
        status = int(block.statuses[place, row])
        if status == PRESENT and not answer.item.call.include_features:
            continue
        value = column.values[row]
        response.features.add(
            name=column.name,
            value=from_python(value if column.valid[row] else None),
            status=STATUS_NAMES.get(status, "UNSPECIFIED"),
        )


def to_status_response(
    gateway_id: str, statuses: Iterable[ServingStatus], logged: int, dropped: int
) -> pb.GetServingStatusResponse:
    response = pb.GetServingStatusResponse(gateway_id=gateway_id, logged_count=logged, dropped_count=dropped)
    for status in statuses:
        response.models.add(
            model=status.model,
            generation=status.generation,
            champion_release=status.champion,
            challenger_release=status.challenger,
            shadow_percent=status.shadow_percent,
            challenger_percent=status.challenger_percent,
            ready_releases=status.ready_releases,
            failures=status.failures,
        )
    return response
