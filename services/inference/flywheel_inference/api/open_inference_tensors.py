"""Conversion between tensors and the messages of the Open Inference Protocol."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tritonclient.grpc import service_pb2 as pb

from flywheel_inference.open_inference.errors import InvalidTensor, UnsupportedParameter
from flywheel_inference.open_inference.tensor import (
    BYTES,
    NamedTensor,
    TensorMetadata,
    element_count,
    from_elements,
    from_raw,
    raw_bytes,
)

MAX_TENSORS = 10_000
_CONTENTS = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    BYTES: "bytes_contents",
}
"""Field of InferTensorContents that holds the elements of a datatype; FP16 exists in raw form only."""
_REFUSED = ("shared_memory_", "sequence_", "classification")
"""Prefixes of parameters whose meaning the gateway cannot fulfil; other parameters are ignored."""


def inputs_of(request: pb.ModelInferRequest) -> list[NamedTensor]:
    """The input tensors. Raises InvalidTensor, TensorTooLarge, UnsupportedParameter."""
    _check_parameters(request.parameters)
    for part in (*request.inputs, *request.outputs):
        _check_parameters(part.parameters)
    raw = request.raw_input_contents
    if len(request.inputs) > MAX_TENSORS:
        raise InvalidTensor(f"The request has {len(request.inputs)} inputs: send at most {MAX_TENSORS}.")
    if raw and len(raw) != len(request.inputs):
        raise InvalidTensor(f"raw_input_contents has {len(raw)} parts for {len(request.inputs)} inputs.")
    found = []
    for place, tensor in enumerate(request.inputs):
        name, datatype, shape = tensor.name, tensor.datatype, tuple(tensor.shape)
        sent = {field.name for field, _ in tensor.contents.ListFields()}
        if raw:
            if sent:
                raise InvalidTensor(f"Tensor {name!r} has both contents and raw contents.", tensor=name)
            found.append(from_raw(name, datatype, shape, raw[place]))
            continue
        element_count(name, datatype, shape)
        field = _CONTENTS.get(datatype, "")
        if sent - {field}:
            raise InvalidTensor(
                f"Tensor {name!r} of {datatype} needs {field or 'raw contents'}.", tensor=name
            )
        elements = getattr(tensor.contents, field) if field else ()
        found.append(from_elements(name, datatype, shape, elements))
    return found


def _check_parameters(parameters: Mapping[str, pb.InferParameter]) -> None:
    for key in parameters:
        if key.startswith(_REFUSED):
            raise UnsupportedParameter(f"The parameter {key[:100]!r} is not supported.", parameter=key[:100])


def infer_response(request: pb.ModelInferRequest, tensors: Sequence[NamedTensor]) -> pb.ModelInferResponse:
    """The answer, in raw form unless the request has its inputs as contents."""
    response = pb.ModelInferResponse(
        model_name=request.model_name, model_version=request.model_version, id=request.id
    )
    as_contents = bool(request.inputs) and not request.raw_input_contents
    for tensor in tensors:
        output = response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        if as_contents:
            getattr(output.contents, _CONTENTS[tensor.datatype]).extend(tensor.values.ravel().tolist())
        else:
            response.raw_output_contents.append(raw_bytes(tensor))
    return response


def metadata(
    tensors: Iterable[TensorMetadata],
) -> list[pb.ModelMetadataResponse.TensorMetadata]:
    """The metadata of tensors."""
    return [
        pb.ModelMetadataResponse.TensorMetadata(name=name, datatype=datatype, shape=shape)
        for name, datatype, shape in tensors
    ]
