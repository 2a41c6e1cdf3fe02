"""Rows of predictions as tensors: entity keys and request fields in, answers out.

Each join key and request field of the feature set is a tensor [rows], or [rows, elements] for lists and
vectors. `flywheel.prediction_id`, `flywheel.subject` (BYTES) and `flywheel.as_of` (INT64, microseconds since
1970 UTC) are optional. NaN is null. Texts are UTF-8.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flywheel_common.arrays import Array
from flywheel_common.columns import ELEMENT_OF, VECTORS, element_of
from flywheel_common.errors import WrongType
from flywheel_common.signature import MAX_WIDTH, OutputKind, OutputSpec
from flywheel_inference.open_inference.errors import (
    InvalidTensor,
    MissingTensor,
    TensorTooLarge,
    UnknownTensor,
)
from flywheel_inference.open_inference.tensor import BYTES, DTYPES, NamedTensor, TensorMetadata
from flywheel_inference.releases.release import FeatureSetContract, FieldSpec
from flywheel_protos.events.v1 import prediction_pb2
from flywheel_protos.inference.v1 import inference_pb2 as pb
from flywheel_protos.types.v1 import value_pb2

PREDICTION_ID, SUBJECT, AS_OF = "flywheel.prediction_id", "flywheel.subject", "flywheel.as_of"
_DATATYPES: dict[int, str] = {
    value_pb2.DATA_TYPE_BOOL: "BOOL",
    value_pb2.DATA_TYPE_INT64: "INT64",
    value_pb2.DATA_TYPE_FLOAT32: "FP32",
    value_pb2.DATA_TYPE_FLOAT64: "FP64",
    value_pb2.DATA_TYPE_STRING: BYTES,
    value_pb2.DATA_TYPE_BYTES: BYTES,
    value_pb2.DATA_TYPE_TIMESTAMP: "INT64",
}
_TEXT_BYTES = 128
"""Upper bound of the bytes of a text in an answer, for the limit of the response."""


class PredictionRows:
    """The rows of a request as PredictRequests, made one at a time."""

    def __init__(self, model: str, tensors: Sequence[NamedTensor], contract: FeatureSetContract) -> None:
        """Raises MissingTensor, InvalidTensor, TensorTooLarge."""
        if not tensors:
            raise MissingTensor(f"The request has no inputs: send those of ModelMetadata for {model}.")
        self.count = tensors[0].shape[0]
        self._model = model
        self._options: dict[str, Array] = {}
        self._fields: list[tuple[str, FieldSpec | None, bool, bool, Array]] = []
        keys = {field.name: field for field in contract.join_keys}
        fields = {field.name: field for field in contract.request_fields}
        width = 0
        for tensor in tensors:
            name = tensor.name
            if tensor.shape[0] != self.count:
                raise InvalidTensor(f"Tensor {name!r} does not have {self.count} rows.", tensor=name)
            width += tensor.values.size // self.count
            if name in (PREDICTION_ID, SUBJECT, AS_OF):
                self._options[name] = _option(tensor)
                continue
            # A tensor that the champion does not know may be for the challenger: it serves as either.
            unknown = name not in keys and name not in fields
            spec = keys.get(name) or fields.get(name)
            values = _per_row(tensor, spec)
            self._fields.append((name, spec, unknown or name in keys, unknown or name in fields, values))
        if width > MAX_WIDTH:
            raise TensorTooLarge(f"A row has more than {MAX_WIDTH} elements.", limit=MAX_WIDTH)
        if len({tensor.name for tensor in tensors}) != len(tensors):
            raise InvalidTensor("Two inputs have the same name.")

    def request(self, row: int) -> pb.PredictRequest:
        """Raises InvalidTensor, WrongType."""
        made = pb.PredictRequest(model=self._model)
        for name, spec, is_key, is_field, values in self._fields:
            value = _value(name, spec, values[row])
            if is_key:
                made.entity_keys[name].CopyFrom(value)
            if is_field:
                made.request_fields[name].CopyFrom(value)
        for name, values in self._options.items():
            if name == AS_OF:
                _set_micros(made.as_of, AS_OF, int(values[row]))
            elif name == SUBJECT:
                made.subject = _text(name, values[row])
            else:
                made.prediction_id = _text(name, values[row])
        return made


def _option(tensor: NamedTensor) -> Array:
    expected = "INT64" if tensor.name == AS_OF else BYTES
    if tensor.datatype != expected or tensor.values.size != tensor.shape[0]:
        raise InvalidTensor(f"Tensor {tensor.name!r} needs {expected} [rows].", tensor=tensor.name)
    return tensor.values.ravel()


def _per_row(tensor: NamedTensor, spec: FieldSpec | None) -> Array:
    """[rows] single values, or [rows, elements] of lists."""
    if spec is None:
        many = tensor.values.size > tensor.shape[0]
    else:
        many = spec.data_type in ELEMENT_OF or spec.data_type in VECTORS
    if len(tensor.shape) == 1 or (len(tensor.shape) == 2 and many):
        return tensor.values
    if tensor.values.size == tensor.shape[0]:
        return tensor.values.ravel()
    raise InvalidTensor(f"Tensor {tensor.name!r} needs one value per row.", tensor=tensor.name)


def _value(name: str, spec: FieldSpec | None, found: Any) -> value_pb2.Value:
    data_type = element_of(spec.data_type) if spec is not None else 0
    if not isinstance(found, np.ndarray):
        return _scalar(name, data_type, found)
    values = [_scalar(name, data_type, one) for one in found]
    return value_pb2.Value(list_value=value_pb2.ValueList(values=values))


def _scalar(name: str, data_type: int, found: Any) -> value_pb2.Value:
    if isinstance(found, bytes):
        if data_type == value_pb2.DATA_TYPE_BYTES:
            return value_pb2.Value(bytes_value=found)
        return value_pb2.Value(string_value=_text(name, found))
    plain = found.item()
    if isinstance(plain, bool):
        return value_pb2.Value(bool_value=plain)
    if isinstance(plain, float):
        return value_pb2.Value(double_value=plain)
    if data_type == value_pb2.DATA_TYPE_TIMESTAMP:
        made = value_pb2.Value()
        _set_micros(made.timestamp_value, name, plain)
        return made
    if plain >= 2**63:
        raise WrongType(f"Tensor {name!r} has a number above the range of INT64.", field=name)
    return value_pb2.Value(int64_value=plain)


def _text(name: str, found: bytes) -> str:
    try:
        return found.decode()
    except UnicodeDecodeError:
        raise InvalidTensor(f"Tensor {name!r} has a text that is not UTF-8.", tensor=name) from None


def _set_micros(timestamp: Any, name: str, micros: int) -> None:
    try:
        timestamp.FromMicroseconds(micros)
    except ValueError:
        raise InvalidTensor(f"Tensor {name!r} has a time outside the years 1 to 9999.", tensor=name) from None


def input_metadata(contract: FeatureSetContract) -> list[TensorMetadata]:
    """Name, datatype and shape of the tensors that the feature set needs."""
    seen = {field.name: field for field in (*contract.join_keys, *contract.request_fields)}
    return [(name, _DATATYPES[element_of(field.data_type)], _shape(field)) for name, field in seen.items()]


def _shape(field: FieldSpec) -> Sequence[int]:
    if field.data_type in VECTORS:
        return (-1, field.vector_size or -1)
    return (-1, -1) if field.data_type in ELEMENT_OF else (-1,)


def output_metadata(output: OutputSpec) -> list[TensorMetadata]:
    """Name, datatype and shape of the tensors of an answer."""
    found: list[TensorMetadata] = [
        ("score", "FP64", (-1,)),
        ("decision", "BOOL", (-1,)),
        ("prediction_id", BYTES, (-1,)),
        ("model_version", BYTES, (-1,)),
        ("release", BYTES, (-1,)),
        ("role", BYTES, (-1,)),
        ("source", BYTES, (-1,)),
        ("degraded", "BOOL", (-1,)),
        ("degraded_reason", BYTES, (-1,)),
    ]
    if output.kind in (OutputKind.MULTICLASS, OutputKind.VECTOR):
        found.append(("values", "FP64", (-1, output.width)))
    if output.kind is OutputKind.MULTICLASS:
        found.append(("predicted_class", BYTES, (-1,)))
    return found


def wanted_outputs(output: OutputSpec, names: Sequence[str], rows: int, max_bytes: int) -> list[str]:
    """The names of the tensors to answer with, all when none is asked for. Raises UnknownTensor,
    TensorTooLarge."""
    declared = {name: (datatype, shape) for name, datatype, shape in output_metadata(output)}
    for name in names:
        if name not in declared:
            raise UnknownTensor(f"The model has no output {name!r}.", tensor=name)
    wanted = list(dict.fromkeys(names)) or list(declared)
    size = 0
    for name in wanted:
        datatype, shape = declared[name]
        elements = shape[1] if len(shape) == 2 else 1
        size += rows * elements * (_TEXT_BYTES if datatype == BYTES else DTYPES[datatype].itemsize)
    if size > max_bytes:
        raise TensorTooLarge(f"The answer would have {size} bytes: send fewer rows.", limit=max_bytes)
    return wanted


def output_tensors(
    answers: Sequence[pb.PredictResponse], output: OutputSpec, names: Sequence[str]
) -> list[NamedTensor]:
    """The tensors of these names. A row whose release has another output kind has NaN in `values`."""
    declared = {name: datatype for name, datatype, _ in output_metadata(output)}
    return [NamedTensor(name, declared[name], _column(answers, output, name)) for name in names]


def _column(answers: Sequence[pb.PredictResponse], output: OutputSpec, name: str) -> Array:
    if name == "values":
        rows = np.full((len(answers), output.width), np.nan)
        for row, answer in enumerate(answers):
            if len(answer.values) == output.width:
                rows[row] = answer.values
        return rows
    found = [getattr(answer, name) for answer in answers]
    if name == "role":
        found = [prediction_pb2.PredictionRole.Name(v).removeprefix("PREDICTION_ROLE_") for v in found]
    elif name == "source":
        found = [prediction_pb2.PredictionSource.Name(v).removeprefix("PREDICTION_SOURCE_") for v in found]
    if name in ("score", "decision", "degraded"):
        return np.array(found, np.float64 if name == "score" else np.bool_)
    texts = np.empty(len(found), object)
    texts[:] = [text.encode() for text in found]
    return texts
