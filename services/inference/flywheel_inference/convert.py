"""Protobuf ↔ domain: requests and answers, and the registry's desired state."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from flywheel_common.errors import InvalidArgument
from flywheel_common.names import Pattern
from flywheel_common.value import Value, coerce, from_python
from flywheel_inference.calibration import Calibration, Identity, Isotonic, Platt
from flywheel_inference.prediction import Answer
from flywheel_inference.release import (
    ArtifactSpec,
    Contract,
    DesiredModel,
    FallbackPolicy,
    FieldSpec,
    GoldenRows,
    InputSpec,
    ObservedModel,
    ReleaseSpec,
)
from flywheel_inference.serving import ServingStatus
from flywheel_inference.tensor import PRESENT, STATUS_NAMES
from flywheel_inference.triton_model import model_name
from flywheel_protos.feature.v1 import definitions_pb2
from flywheel_protos.inference.v1 import inference_pb2 as pb
from flywheel_protos.registry.v1 import model_pb2, registry_pb2
from flywheel_protos.types.v1 import value_pb2

VERSION_NAME = Pattern("projects/{project}/models/{model}/versions/{version:int}")

_KINDS: dict[int, str] = {
    value_pb2.DATA_TYPE_BOOL: "bool_value",
    value_pb2.DATA_TYPE_INT64: "int64_value",
    value_pb2.DATA_TYPE_FLOAT64: "double_value",
    value_pb2.DATA_TYPE_FLOAT32: "double_value",
    value_pb2.DATA_TYPE_STRING: "string_value",
    value_pb2.DATA_TYPE_BYTES: "bytes_value",
}
"""The kind of Value that is already of the type: no coercion needed."""


class ProtoCall:
    """A PredictRequest as the use case sees it (`request.PredictCall`)."""

    __slots__ = ("_fields", "_keys", "as_of_micros", "include_features", "model", "prediction_id", "subject")

    def __init__(self, request: pb.PredictRequest) -> None:
        self.model = request.model
        self.subject = request.subject
        self.prediction_id = request.prediction_id
        self.include_features = request.include_features
        self.as_of_micros: int | None = None
        if request.HasField("as_of"):
            self.as_of_micros = request.as_of.ToMicroseconds()
        self._keys = request.entity_keys
        self._fields = request.request_fields

    def bind(self, contract: Contract) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        keys = tuple(
            [_field(self._keys, spec, "entity_keys", "MISSING_JOIN_KEY") for spec in contract.join_keys]
        )
        if None in keys:
            name = contract.join_keys[keys.index(None)].name
            raise InvalidArgument(
                f"entity_keys[{name!r}] is null: send the entity's key.",
                reason="MISSING_JOIN_KEY",
                field=name,
            )
        fields = tuple(
            [
                _field(self._fields, spec, "request_fields", "MISSING_REQUEST_FIELD")
                for spec in contract.request_fields
            ]
        )
        return keys, fields

    def key_text(self, name: str) -> str:
        if name not in self._keys:
            return ""
        value = self._keys[name]
        kind = value.WhichOneof("kind")
        return "" if kind is None else str(getattr(value, kind))


def _field(sent: Mapping[str, Value], spec: FieldSpec, where: str, missing: str) -> Any:
    if spec.name not in sent:
        raise InvalidArgument(
            f"{where} lacks {spec.name!r}, which the model's feature set needs: send it (a null request field as a Value without a kind).",
            reason=missing,
            field=spec.name,
        )
    value = sent[spec.name]
    kind = value.WhichOneof("kind")
    if kind == _KINDS.get(spec.data_type, "") and kind is not None:
        return getattr(value, kind)
    return coerce(value, spec.data_type, f"{where}[{spec.name!r}]")


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


# ------------------------------------------------------------------------------------------- the desired state
def desired_models(content: bytes) -> tuple[list[DesiredModel], dict[str, str]]:
    """From a serialized WatchServingResponse: the models that can be understood, and for each release that cannot: release → why."""
    response = registry_pb2.WatchServingResponse.FromString(content)
    failures: dict[str, str] = {}

    def spec(message: model_pb2.ServingRelease) -> ReleaseSpec | None:
        if not message.release.name:
            return None
        try:
            return _release(message)
        except (ValueError, InvalidArgument) as error:
            failures[message.release.name] = f"The release cannot be served: {error}."
            return None

    models = [
        DesiredModel(
            model=model.model,
            generation=model.generation,
            champion=spec(model.champion),
            challenger=spec(model.challenger),
            rollout=model.rollout,
            shadow_percent=model.shadow_percent,
            challenger_percent=model.challenger_percent,
            warm=tuple(s for s in map(spec, model.warm) if s is not None),
        )
        for model in response.models
    ]
    return models, failures


def _release(message: model_pb2.ServingRelease) -> ReleaseSpec:
    release, version = message.release, message.model_version
    parts = VERSION_NAME.parse(version.name)
    inputs = tuple(InputSpec(i.name, i.data_type, tuple(i.vocabulary)) for i in version.signature.inputs)
    if not inputs:
        raise ValueError("its signature has no inputs")
    policy = release.fallback
    return ReleaseSpec(
        name=release.name,
        model=f"projects/{parts['project']}/models/{parts['model']}",
        model_version=version.name,
        triton_model=model_name(str(parts["project"]), str(parts["model"]), int(parts["version"])),
        feature_set=release.feature_set,
        inputs=inputs,
        artifacts=tuple(ArtifactSpec(a.name, a.size_bytes, a.sha256.lower()) for a in version.artifacts),
        golden=_golden(version.golden_rows, len(inputs)),
        calibration=_calibration(release.calibration),
        threshold=release.threshold,
        fallback=FallbackPolicy(
            default_score=policy.default_score if policy.HasField("default_score") else None,
            cached_max_age_seconds=policy.cached_max_age.ToNanoseconds() / 1e9
            if policy.HasField("cached_max_age")
            else 0.0,
        ),
        segment_keys=tuple(release.segment_keys),
    )


def _golden(message: model_pb2.GoldenRows, inputs: int) -> GoldenRows:
    rows = message.row_count
    if len(message.inputs) != rows * inputs * 4 or len(message.scores) != rows * 4:
        raise ValueError(f"its {rows} golden rows do not have {inputs} inputs and one score each")
    return GoldenRows(
        inputs=np.frombuffer(message.inputs, "<f4").reshape(rows, inputs),
        scores=np.frombuffer(message.scores, "<f4"),
        tolerance=message.tolerance or 1e-4,
    )


def _calibration(message: model_pb2.Calibration) -> Calibration:
    kind = message.WhichOneof("kind")
    if kind == "platt":
        if not (math.isfinite(message.platt.slope) and math.isfinite(message.platt.intercept)):
            raise ValueError("its calibration has no finite slope and intercept")
        return Platt(message.platt.slope, message.platt.intercept)
    if kind == "isotonic":
        return Isotonic(tuple(message.isotonic.x), tuple(message.isotonic.y))
    return Identity()


def contract_of(feature_set: definitions_pb2.FeatureSet, name: str) -> Contract:
    """What a caller must send; `name` is the versioned name that the release cites."""
    return Contract(
        feature_set=name,
        join_keys=tuple(FieldSpec(f.name, f.data_type) for f in feature_set.join_keys),
        request_fields=tuple(FieldSpec(f.name, f.data_type) for f in feature_set.request_fields),
    )


def to_observed(model: ObservedModel) -> model_pb2.ObservedModel:
    return model_pb2.ObservedModel(
        model=model.model,
        generation=model.generation,
        ready_releases=model.ready_releases,
        failures=model.failures,
    )


def micros_of(outcome: pb.Outcome, now: int) -> int:
    """When an outcome became known, microseconds since 1970 UTC."""
    return outcome.event_time.ToMicroseconds() if outcome.HasField("event_time") else now
