"""Conversion between signatures and tensors and their protobuf messages."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from flywheel_common.arrays import Array
from flywheel_common.signature import (
    BOOL,
    FLOAT32,
    FLOAT64,
    INPUT,
    INT64,
    SCORE,
    STRING,
    InputSpec,
    OutputKind,
    OutputSpec,
    Signature,
    TensorSpec,
)
from flywheel_protos.registry.v1 import model_pb2
from flywheel_protos.types.v1 import tensor_pb2

TENSOR_DTYPES: dict[int, np.dtype[Any]] = {
    BOOL: np.dtype("?"),
    INT64: np.dtype("<i8"),
    FLOAT32: np.dtype("<f4"),
    FLOAT64: np.dtype("<f8"),
}
"""numpy type of each fixed-width tensor type."""


def signature_from_message(message: model_pb2.Signature) -> Signature:
    """The signature of a message; `signature.problems` says whether it is valid."""
    return Signature(
        inputs=tuple(
            InputSpec(i.name, int(i.data_type), tuple(i.vocabulary), i.tensor or INPUT, i.vector_size)
            for i in message.inputs
        ),
        tensors=tuple(TensorSpec(t.name, int(t.data_type), tuple(t.shape)) for t in message.tensors),
        output=_output(message.output),
    )


def signature_message(signature: Signature) -> model_pb2.Signature:
    """The message of a signature."""
    return model_pb2.Signature(
        inputs=[
            model_pb2.SignatureInput(
                name=i.name,
                data_type=i.data_type,  # type: ignore[arg-type]
                vocabulary=i.vocabulary,
                tensor="" if i.tensor == INPUT else i.tensor,
                vector_size=i.vector_size,
            )
            for i in signature.inputs
        ],
        tensors=[
            model_pb2.SignatureTensor(name=t.name, data_type=t.data_type, shape=t.shape)  # type: ignore[arg-type]
            for t in signature.tensors
        ],
        output=_output_message(signature.output),
    )


def _output(message: model_pb2.SignatureOutput) -> OutputSpec:
    tensor = message.tensor or SCORE
    kind = message.WhichOneof("kind")
    if kind == "multiclass":
        return OutputSpec(OutputKind.MULTICLASS, tensor, class_names=tuple(message.multiclass.class_names))
    if kind == "regression":
        return OutputSpec(OutputKind.REGRESSION, tensor, unit=message.regression.unit)
    if kind == "vector":
        return OutputSpec(OutputKind.VECTOR, tensor, size=message.vector.size)
    return OutputSpec(OutputKind.BINARY, tensor, positive_class=message.binary.positive_class)


def _output_message(output: OutputSpec) -> model_pb2.SignatureOutput:
    tensor = "" if output.tensor == SCORE else output.tensor
    if output.kind is OutputKind.MULTICLASS:
        kind = model_pb2.MulticlassOutput(class_names=output.class_names)
        return model_pb2.SignatureOutput(tensor=tensor, multiclass=kind)
    if output.kind is OutputKind.REGRESSION:
        return model_pb2.SignatureOutput(
            tensor=tensor, regression=model_pb2.RegressionOutput(unit=output.unit)
        )
    if output.kind is OutputKind.VECTOR:
        return model_pb2.SignatureOutput(tensor=tensor, vector=model_pb2.VectorOutput(size=output.size))
    binary = model_pb2.BinaryOutput(positive_class=output.positive_class)
    return model_pb2.SignatureOutput(tensor=tensor, binary=binary)


def tensor_array(message: tensor_pb2.Tensor) -> Array:
    """The array of a tensor: object dtype with str for STRING. The length is checked before memory is
    allocated. Raises ValueError."""
    shape, data_type = tuple(message.shape), int(message.data_type)
    count = math.prod(shape)
    if data_type == STRING:
        return np.array(_texts(message, count), dtype=object).reshape(shape)
    dtype = TENSOR_DTYPES.get(data_type)
    if dtype is None:
        raise ValueError(f"tensor {message.name!r} has the data type {data_type}, which no tensor has")
    if len(message.data) != count * dtype.itemsize:
        raise ValueError(
            f"tensor {message.name!r} of shape {list(shape)} needs {count * dtype.itemsize} bytes, "
            f"it has {len(message.data)}"
        )
    return np.frombuffer(message.data, dtype).reshape(shape)


def _texts(message: tensor_pb2.Tensor, count: int) -> Sequence[str]:
    data, texts, place = message.data, [], 0
    if len(data) < 4 * count:
        raise ValueError(f"tensor {message.name!r} is too short for {count} texts")
    for _ in range(count):
        if place + 4 > len(data):
            raise ValueError(f"tensor {message.name!r} ends inside a text")
        (size,) = struct.unpack_from("<I", data, place)
        place += 4
        if place + size > len(data):
            raise ValueError(f"tensor {message.name!r} ends inside a text")
        texts.append(data[place : place + size].decode())
        place += size
    if place != len(data):
        raise ValueError(f"tensor {message.name!r} has {len(data) - place} bytes after its last text")
    return texts


def tensor_message(name: str, data_type: int, array: Array) -> tensor_pb2.Tensor:
    """The message of an array; its values are converted to the data type."""
    if data_type == STRING:
        parts = [str(value).encode() for value in array.ravel().tolist()]
        data = b"".join(struct.pack("<I", len(part)) + part for part in parts)
    else:
        data = np.ascontiguousarray(array, TENSOR_DTYPES[data_type]).tobytes()
    return tensor_pb2.Tensor(name=name, data_type=data_type, shape=array.shape, data=data)  # type: ignore[arg-type]
