"""Calls of one model version with raw tensors: checked against its signature, then forwarded to Triton.

There is no routing, calibration, fallback or log row, but a call has a place like a prediction of the model.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from flywheel_common.arrays import Array
from flywheel_common.context import current_principal, left_seconds
from flywheel_common.errors import DeadlineExceeded
from flywheel_common.signature import STRING, TensorSpec
from flywheel_inference.models.ports import ModelServer
from flywheel_inference.open_inference.errors import (
    InvalidTensor,
    MissingTensor,
    TensorTooLarge,
    UnknownTensor,
)
from flywheel_inference.open_inference.served import Served
from flywheel_inference.open_inference.tensor import DTYPES, TENSOR_DATATYPES, NamedTensor, TensorMetadata
from flywheel_inference.prediction.admission import Admission
from flywheel_inference.releases.release import ReleaseSpec

MAX_SECONDS = 30.0
"""Time limit of a call whose deadline is later or unset."""


class RawInference:
    """Runs loaded model versions in calls that `admission` admits. An answer has at most `max_bytes`."""

    def __init__(self, served: Served, models: ModelServer, admission: Admission, *, max_bytes: int) -> None:
        self._served = served
        self._models = models
        self._admission = admission
        self._max_bytes = max_bytes

    async def infer(
        self, model_version: str, inputs: Sequence[NamedTensor], outputs: Sequence[str], priority: int
    ) -> NamedTensor:
        """The output tensor [rows, width]. `outputs`: names that the caller asks for; empty: all. `priority`:
        number of an inference.v1.Priority. Raises VersionNotLoaded, InvalidArgument, ResourceExhausted
        OVERLOADED, and as `ModelServer.infer`."""
        spec = self._served.version(model_version)
        datatype = raw_output_metadata(spec)[1]
        output = spec.signature.output
        for name in outputs:
            if name != output.tensor:
                raise UnknownTensor(f"{model_version} has no output {name!r}.", tensor=name)
        arrays, rows = _checked(spec, inputs)
        size = rows * output.width * DTYPES[datatype].itemsize
        if size > self._max_bytes:
            raise TensorTooLarge(
                f"The output would have {size} bytes: send fewer rows.", limit=self._max_bytes
            )
        with self._admission.admitted(spec.model, current_principal(), priority):
            values = await self._run(spec, arrays, rows)
        return NamedTensor(output.tensor, datatype, values)

    async def _run(self, spec: ReleaseSpec, arrays: dict[str, Array], rows: int) -> Array:
        """The output for all rows, in calls that the model accepts, one after another."""
        left = left_seconds()
        ends = time.monotonic() + (MAX_SECONDS if left is None else min(left, MAX_SECONDS))
        at_once = spec.serving.placement.max_batch_rows
        found = []
        for start in range(0, max(rows, 1), at_once):
            seconds = ends - time.monotonic()
            if seconds <= 0:
                raise DeadlineExceeded("No time is left for the model.")
            part = {name: array[start : start + at_once] for name, array in arrays.items()}
            found.append(await self._models.infer(spec.triton_model, part, spec.signature.output, seconds))
        return found[0] if len(found) == 1 else np.concatenate(found)


def raw_input_metadata(spec: ReleaseSpec) -> list[TensorMetadata]:
    """The input tensors of a version."""
    return [(t.name, TENSOR_DATATYPES[t.data_type], (-1, *t.shape)) for t in spec.signature.input_tensors]


def raw_output_metadata(spec: ReleaseSpec) -> TensorMetadata:
    """The output tensor of a version. Its datatype is that of the golden rows."""
    output = spec.signature.output
    return output.tensor, "FP64" if spec.golden.output.dtype.itemsize == 8 else "FP32", (-1, output.width)


def _checked(spec: ReleaseSpec, inputs: Sequence[NamedTensor]) -> tuple[dict[str, Array], int]:
    """The input arrays by name, and their rows. Raises InvalidArgument."""
    given = {tensor.name: tensor for tensor in inputs}
    if len(given) != len(inputs):
        raise InvalidTensor("Two inputs have the same name.")
    declared = {tensor.name: tensor for tensor in spec.signature.input_tensors}
    for name in given:
        if name not in declared:
            raise UnknownTensor(f"{spec.model_version} has no input {name!r}.", tensor=name)
    rows = inputs[0].shape[0] if inputs else 0
    arrays = {}
    for name, tensor in declared.items():
        if name not in given:
            raise MissingTensor(f"{spec.model_version} needs the input {name!r}.", tensor=name)
        arrays[name] = _array(given[name], tensor, rows)
    return arrays, rows


def _array(given: NamedTensor, declared: TensorSpec, rows: int) -> Array:
    expected, shape = TENSOR_DATATYPES[declared.data_type], (rows, *declared.shape)
    if given.datatype != expected or given.shape != shape:
        raise InvalidTensor(
            f"Input {given.name!r} is {given.datatype} {list(given.shape)}: send {expected} {list(shape)}.",
            tensor=given.name,
        )
    if declared.data_type != STRING:
        return given.values
    try:
        texts = [text.decode() for text in given.values.ravel().tolist()]
    except UnicodeDecodeError:
        raise InvalidTensor(
            f"Input {given.name!r} has a text that is not UTF-8.", tensor=given.name
        ) from None
    values = np.empty(len(texts), object)
    values[:] = texts
    return values.reshape(shape)
