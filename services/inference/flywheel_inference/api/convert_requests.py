"""TODO docstring."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flywheel_common.errors import InvalidArgument
from flywheel_common.value import Value, coerce
from flywheel_inference.releases.release import (
    Contract,
    FieldSpec,
)
from flywheel_protos.inference.v1 import inference_pb2 as pb
from flywheel_protos.types.v1 import value_pb2

_KINDS: dict[int, str] = {
    value_pb2.DATA_TYPE_BOOL: "bool_value",
    value_pb2.DATA_TYPE_INT64: "int64_value",
    value_pb2.DATA_TYPE_FLOAT64: "double_value",
    value_pb2.DATA_TYPE_FLOAT32: "double_value",
    value_pb2.DATA_TYPE_STRING: "string_value",
    value_pb2.DATA_TYPE_BYTES: "bytes_value",
}


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


def micros_of(outcome: pb.Outcome, now: int) -> int:
    """When an outcome became known, microseconds since 1970 UTC."""
    return outcome.event_time.ToMicroseconds() if outcome.HasField("event_time") else now
