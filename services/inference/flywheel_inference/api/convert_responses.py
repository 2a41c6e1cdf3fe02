"""Conversion of answers and serving status from the domain to protobuf."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from flywheel_common.errors import FlywheelError, ResourceExhausted
from flywheel_common.scoring.feature_block import PRESENT, STATUS_NAMES
from flywheel_common.signature import OutputKind
from flywheel_common.value import from_python
from flywheel_inference.prediction.predictor import Answer
from flywheel_inference.scoring.scored import Scored
from flywheel_inference.serving.observed_state import ServingStatus
from flywheel_protos.inference.v1 import inference_pb2 as pb


def to_response(answer: Answer) -> pb.PredictResponse:
    request, scored, spec = answer.request, answer.scored, answer.scorer.spec
    output = spec.signature.output
    response = pb.PredictResponse(
        prediction_id=request.prediction_id,
        score=answer.score,
        decision=answer.decision,
        model_version=spec.model_version,
        release=spec.name,
        role=answer.role,  # type: ignore[arg-type]
        source=answer.source,  # type: ignore[arg-type]
        degraded=bool(answer.reason),
        degraded_reason=answer.reason,
        output_kind=int(output.kind),  # type: ignore[arg-type]
    )
    if output.kind in (OutputKind.MULTICLASS, OutputKind.VECTOR):
        response.values.extend(answer.values)
        if answer.decision:
            response.predicted_class = output.class_names[int(np.argmax(answer.values))]
    timing = response.timing
    timing.total_ms = answer.total_ms
    if scored is not None:
        timing.queue_ms = scored.queue_ms
        timing.features_ms = scored.batch.features_ms
        timing.model_ms = scored.batch.model_ms
        include_all = request.call.include_features
        if scored.flagged or include_all:
            _add_features(response, scored, include_all=include_all)
    return response


def _add_features(response: pb.PredictResponse, scored: Scored, *, include_all: bool) -> None:
    """Adds the features that were not PRESENT, or all of them."""
    block, row = scored.batch.block, scored.row
    for place, column in enumerate(block.columns):
        status = int(block.statuses[place, row])
        if status == PRESENT and not include_all:
            continue
        value = column.values[row]
        response.features.add(
            name=column.name,
            value=from_python(value if column.valid[row] else None),
            status=STATUS_NAMES.get(status, "UNSPECIFIED"),
        )


def to_result(answer: pb.PredictResponse | FlywheelError) -> pb.PredictResult:
    """The result of one request of a batch or stream."""
    if not isinstance(answer, FlywheelError):
        return pb.PredictResult(response=answer)
    result = pb.PredictResult()
    error = result.error
    error.code, error.reason, error.message = answer.code.value[0], answer.reason, answer.message
    error.metadata.update(answer.metadata)
    if isinstance(answer, ResourceExhausted):
        error.retry_delay.FromNanoseconds(int(answer.retry_after_seconds * 1e9))
    return result


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
            variants=[
                pb.ServedVariant(
                    name=variant.name,
                    release=variant.release,
                    percent=variant.percent,
                    shadow_percent=variant.shadow_percent,
                )
                for variant in status.variants
            ],
        )
    return response
