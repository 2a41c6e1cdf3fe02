"""Tensors of the protocol: their datatypes, and parsing that checks lengths before it allocates memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flywheel_common.arrays import Array
from flywheel_common.signature import BOOL, FLOAT32, FLOAT64, INT64, STRING
from flywheel_common.tensors import packed_blobs, unpacked_blobs
from flywheel_inference.open_inference.errors import InvalidTensor, TensorTooLarge

BYTES = "BYTES"
DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
"""numpy type of each datatype of fixed width."""
TENSOR_DATATYPES = {BOOL: "BOOL", INT64: "INT64", FLOAT32: "FP32", FLOAT64: "FP64", STRING: BYTES}
"""Tensor type of a signature → datatype."""
MAX_ROWS = 1024
MAX_TEXTS = 1 << 20
"""Largest number of elements of a BYTES tensor: each is an object of its own."""


@dataclass(frozen=True, slots=True)
class NamedTensor:
    """A tensor of a request or an answer. `values` has the shape and the numpy type of the datatype; BYTES:
    object with bytes."""

    name: str
    datatype: str
    values: Array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape


TensorMetadata = tuple[str, str, Sequence[int]]
"""Name, datatype, and shape with -1 for the rows and for other sizes that vary."""


def element_count(name: str, datatype: str, shape: Sequence[int]) -> int:
    """The number of elements of a declared shape. Raises InvalidTensor, TensorTooLarge."""
    if datatype != BYTES and datatype not in DTYPES:
        raise InvalidTensor(f"Tensor {name!r} has the unknown datatype {datatype[:40]!r}.", tensor=name)
    if not 1 <= len(shape) <= 8 or any(size < 0 for size in shape):
        raise InvalidTensor(f"Tensor {name!r} needs a shape of 1 to 8 sizes, none negative.", tensor=name)
    if not 1 <= shape[0] <= MAX_ROWS:
        raise TensorTooLarge(f"Tensor {name!r} has {shape[0]} rows: send 1 to {MAX_ROWS}.", limit=MAX_ROWS)
    count = math.prod(shape)
    if datatype == BYTES and count > MAX_TEXTS:
        raise TensorTooLarge(f"Tensor {name!r} has more than {MAX_TEXTS} texts.", limit=MAX_TEXTS)
    return count


def from_raw(name: str, datatype: str, shape: Sequence[int], raw: bytes) -> NamedTensor:
    """A tensor in its raw form: little-endian, row by row; texts after their length in 4 bytes. Shares the
    memory of `raw`. Raises InvalidTensor, TensorTooLarge."""
    count = element_count(name, datatype, shape)
    if datatype == BYTES:
        texts = unpacked_blobs(raw, count)
        if texts is None:
            raise InvalidTensor(
                f"Tensor {name!r} does not have {count} texts with their lengths.", tensor=name
            )
        values = np.empty(count, object)
        values[:] = texts
        return NamedTensor(name, datatype, values.reshape(shape))
    dtype = DTYPES[datatype]
    if len(raw) != count * dtype.itemsize:
        raise InvalidTensor(
            f"Tensor {name!r} of shape {list(shape)} needs {count * dtype.itemsize} bytes, not {len(raw)}.",
            tensor=name,
        )
    if datatype == "BOOL" and raw and max(raw) > 1:
        raise InvalidTensor(f"Tensor {name!r} has a BOOL that is neither 0 nor 1.", tensor=name)
    return NamedTensor(name, datatype, np.frombuffer(raw, dtype).reshape(shape))


def from_elements(name: str, datatype: str, shape: Sequence[int], elements: Sequence[Any]) -> NamedTensor:
    """A tensor of single elements: bool, int, float or bytes. Raises InvalidTensor, TensorTooLarge."""
    count = element_count(name, datatype, shape)
    if len(elements) != count:
        raise InvalidTensor(
            f"Tensor {name!r} of shape {list(shape)} needs {count} elements, it has {len(elements)}.",
            tensor=name,
        )
    if datatype == BYTES:
        values = np.empty(count, object)
        values[:] = list(elements)
        return NamedTensor(name, datatype, values.reshape(shape))
    try:
        values = np.array(elements, DTYPES[datatype])
    except OverflowError:
        raise InvalidTensor(
            f"Tensor {name!r} has a number outside the range of {datatype}.", tensor=name
        ) from None
    return NamedTensor(name, datatype, values.reshape(shape))


def raw_bytes(tensor: NamedTensor) -> bytes:
    """The raw form of a tensor."""
    if tensor.datatype != BYTES:
        return np.ascontiguousarray(tensor.values, DTYPES[tensor.datatype]).tobytes()
    return packed_blobs(tensor.values.ravel().tolist())
