"""Conversion between signatures and tensors and their protobuf messages."""

from __future__ import annotations

from flywheel_common.arrays import Array
from flywheel_common.signature import (
    INPUT,
    SCORE,
    InputSpec,
    OutputKind,
    OutputSpec,
    Signature,
    TensorSpec,
)
from flywheel_common.tensors import Tensor, array_of
from flywheel_protos.registry.v1 import model_pb2
from flywheel_protos.types.v1 import tensor_pb2


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
    """The array of a tensor: object dtype with str for STRING. Raises ValueError."""
    return array_of(message)


def tensor_message(name: str, data_type: int, array: Array) -> tensor_pb2.Tensor:
    """The message of an array; its values are converted to the data type."""
    return to_message(Tensor.of(name, data_type, array))


def from_message(message: tensor_pb2.Tensor) -> Tensor:
    """The tensor of a message."""
    return Tensor(message.name, int(message.data_type), tuple(message.shape), message.data)


def to_message(tensor: Tensor) -> tensor_pb2.Tensor:
    """The message of a tensor."""
    return tensor_pb2.Tensor(
        name=tensor.name,
        data_type=tensor.data_type,  # type: ignore[arg-type]
        shape=tensor.shape,
        data=tensor.data,
    )
