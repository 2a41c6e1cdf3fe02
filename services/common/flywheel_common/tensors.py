"""Tensors as typed bytes: the form in which golden rows are stored and sent."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from flywheel_common.arrays import Array
from flywheel_common.signature import BOOL, FLOAT32, FLOAT64, INT64, STRING

TENSOR_DTYPES: dict[int, np.dtype[Any]] = {
    BOOL: np.dtype("?"),
    INT64: np.dtype("<i8"),
    FLOAT32: np.dtype("<f4"),
    FLOAT64: np.dtype("<f8"),
}
"""numpy type of each fixed-width tensor type."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A dense tensor; the fields are those of `types.v1.Tensor`."""

    name: str
    data_type: int
    shape: tuple[int, ...]
    data: bytes

    @classmethod
    def of(cls, name: str, data_type: int, array: Array) -> Tensor:
        """The tensor of an array; its values are converted to the data type."""
        if data_type == STRING:
            data = packed_texts(array)
        else:
            data = np.ascontiguousarray(array, TENSOR_DTYPES[data_type]).tobytes()
        return cls(name, data_type, tuple(array.shape), data)


class TensorLike(Protocol):
    """A `Tensor`, or the message `types.v1.Tensor`."""

    @property
    def name(self) -> str: ...
    @property
    def data_type(self) -> int: ...
    @property
    def shape(self) -> Sequence[int]: ...
    @property
    def data(self) -> bytes: ...


def array_of(tensor: TensorLike) -> Array:
    """The array of a tensor: object dtype with str for STRING. The length is checked before memory is
    allocated. Raises ValueError."""
    shape, data_type = tuple(tensor.shape), int(tensor.data_type)
    count = math.prod(shape)
    if data_type == STRING:
        return np.array(_texts(tensor, count), dtype=object).reshape(shape)
    dtype = TENSOR_DTYPES.get(data_type)
    if dtype is None:
        raise ValueError(f"tensor {tensor.name!r} has the data type {data_type}, which no tensor has")
    if len(tensor.data) != count * dtype.itemsize:
        raise ValueError(
            f"tensor {tensor.name!r} of shape {list(shape)} needs {count * dtype.itemsize} bytes, "
            f"it has {len(tensor.data)}"
        )
    return np.frombuffer(tensor.data, dtype).reshape(shape)


def packed_texts(array: Array) -> bytes:
    """The texts of an array in C order: for each its length as little-endian uint32, then the UTF-8 bytes.
    The Open Inference Protocol has the same form for BYTES."""
    parts = [str(value).encode() for value in array.ravel().tolist()]
    return b"".join([struct.pack("<I", len(part)) + part for part in parts])


def _texts(tensor: TensorLike, count: int) -> Sequence[str]:
    data, texts, place = tensor.data, [], 0
    if len(data) < 4 * count:
        raise ValueError(f"tensor {tensor.name!r} is too short for {count} texts")
    for _ in range(count):
        if place + 4 > len(data):
            raise ValueError(f"tensor {tensor.name!r} ends inside a text")
        (size,) = struct.unpack_from("<I", data, place)
        place += 4
        if place + size > len(data):
            raise ValueError(f"tensor {tensor.name!r} ends inside a text")
        texts.append(data[place : place + size].decode())
        place += size
    if place != len(data):
        raise ValueError(f"tensor {tensor.name!r} has {len(data) - place} bytes after its last text")
    return texts
