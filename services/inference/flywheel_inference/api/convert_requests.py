"""Conversion of requests from protobuf to the domain."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from flywheel_common.context import call_metadata
from flywheel_common.errors import InvalidArgument, WrongType
from flywheel_common.event_time import EventTimeBound
from flywheel_common.grpc.errors import MessageTooLarge
from flywheel_common.grpc.message_limits import check_text
from flywheel_common.value import Value, coerce
from flywheel_inference.api.call_headers import forced_variant, priority_of
from flywheel_inference.outcomes.errors import InvalidOutcomeValue
from flywheel_inference.outcomes.row import OutcomeRow
from flywheel_inference.releases.release import FeatureSetContract, FieldSpec
from flywheel_inference.requests.errors import MissingJoinKey, MissingRequestField
from flywheel_protos.inference.v1 import inference_pb2 as pb
from flywheel_protos.types.v1 import value_pb2

_EXACT_KINDS: dict[int, str] = {
    value_pb2.DATA_TYPE_BOOL: "bool_value",
    value_pb2.DATA_TYPE_INT64: "int64_value",
    value_pb2.DATA_TYPE_FLOAT64: "double_value",
    value_pb2.DATA_TYPE_FLOAT32: "double_value",
    value_pb2.DATA_TYPE_STRING: "string_value",
    value_pb2.DATA_TYPE_BYTES: "bytes_value",
}
"""Data type → the kind of Value that already has this type and needs no coercion."""


MAX_PREDICT_BYTES = 1024 * 1024
"""Largest PredictRequest: a record of the prediction log, which is larger, must hold its fields."""


class ProtoCall:
    """`requests.PredictCall` on a PredictRequest."""

    __slots__ = (
        "_fields",
        "_keys",
        "as_of_micros",
        "include_features",
        "model",
        "prediction_id",
        "priority",
        "size_bytes",
        "subject",
        "variant",
    )

    def __init__(
        self,
        request: pb.PredictRequest,
        event_times: EventTimeBound,
        variant: str = "",
        priority: int = pb.PRIORITY_UNSPECIFIED,
    ) -> None:
        """`priority`: of a request that has none. Raises EventTimeOutOfRange for an `as_of` that is unset or
        after now + max_clock_skew, MessageTooLarge, InvalidText."""
        self.size_bytes = request.ByteSize()
        if self.size_bytes > MAX_PREDICT_BYTES:
            raise MessageTooLarge(
                f"The request has {self.size_bytes} bytes, the limit is {MAX_PREDICT_BYTES}: shorten its "
                "fields.",
                limit_bytes=MAX_PREDICT_BYTES,
            )
        self.model = request.model
        self.variant = variant
        self.priority: int = request.priority or priority
        self.subject = check_text(request.subject, "subject")
        self.prediction_id = check_text(request.prediction_id, "prediction_id")
        self.include_features = request.include_features
        self.as_of_micros: int | None = None
        if request.HasField("as_of"):
            self.as_of_micros = request.as_of.ToMicroseconds()
            event_times.check(self.as_of_micros, "as_of")
        self._keys = request.entity_keys
        self._fields = request.request_fields

    def bind(self, contract: FeatureSetContract) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        keys = tuple([_value(self._keys, spec, "entity_keys", MissingJoinKey) for spec in contract.join_keys])
        if None in keys:
            name = contract.join_keys[keys.index(None)].name
            raise MissingJoinKey(f"entity_keys[{name!r}] is null: send the entity's key.", field=name)
        fields = tuple(
            [
                _value(self._fields, spec, "request_fields", MissingRequestField)
                for spec in contract.request_fields
            ]
        )
        return keys, fields


def predict_call(request: pb.PredictRequest, event_times: EventTimeBound) -> ProtoCall:
    """A request with the priority and the variant that the metadata of the running call asks for. Raises as
    `ProtoCall`, and PermissionDenied."""
    metadata = call_metadata()
    return ProtoCall(request, event_times, forced_variant(metadata), priority_of(metadata))


def _value(sent: Mapping[str, Value], spec: FieldSpec, where: str, missing: type[InvalidArgument]) -> Any:
    if spec.name not in sent:
        raise missing(
            f"{where} lacks {spec.name!r}, which the model's feature set needs: send it "
            "(a null request field as a Value without a kind).",
            field=spec.name,
        )
    value = sent[spec.name]
    kind = value.WhichOneof("kind")
    if kind == "string_value":
        check_text(value.string_value, f"{where}[{spec.name!r}]")
    if kind == _EXACT_KINDS.get(spec.data_type, "") and kind is not None:
        plain = getattr(value, kind)
        # NaN differs from itself; it is null.
        return plain if plain == plain else None
    plain = coerce(value, spec.data_type, f"{where}[{spec.name!r}]")
    if spec.vector_size and plain is not None and len(plain) != spec.vector_size:
        raise WrongType(
            f"{where}[{spec.name!r}] has {len(plain)} elements: send {spec.vector_size}.", field=spec.name
        )
    return plain


def outcome_rows(
    outcomes: Iterable[pb.Outcome], now_micros: int, event_times: EventTimeBound
) -> list[OutcomeRow]:
    """The outcomes of a request. Event time defaults to now, the id to prediction id and name.

    The value of one with a class_name only is NaN. Raises InvalidOutcomeValue for an outcome without both,
    EventTimeOutOfRange.
    """
    rows = []
    for place, outcome in enumerate(outcomes):
        if not outcome.HasField("value") and not outcome.class_name:
            raise InvalidOutcomeValue(f"outcomes[{place}] has no value: send a finite number.")
        time = now_micros
        if outcome.HasField("event_time"):
            time = outcome.event_time.ToMicroseconds()
            event_times.check(time, f"outcomes[{place}].event_time")
        rows.append(
            OutcomeRow(
                check_text(outcome.prediction_id, "prediction_id"),
                check_text(outcome.name, "name"),
                outcome.value if outcome.HasField("value") else math.nan,
                time,
                check_text(outcome.outcome_id, "outcome_id") or f"{outcome.prediction_id}:{outcome.name}",
                check_text(outcome.class_name, "class_name"),
            )
        )
    return rows
