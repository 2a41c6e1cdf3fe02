"""Tensors as typed bytes: the form in which golden rows are stored and sent."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
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
    """The texts of an array in C order, as `packed_blobs` of their UTF-8 bytes."""
    return packed_blobs(str(value).encode() for value in array.ravel().tolist())


def packed_blobs(blobs: Iterable[bytes]) -> bytes:
    """For each its length as little-endian uint32, then its bytes: STRING here, BYTES in the Open Inference
    Protocol."""
    return b"".join([struct.pack("<I", len(blob)) + blob for blob in blobs])


def unpacked_blobs(packed: bytes, count: int) -> list[bytes] | None:
    """What `packed_blobs` has packed; None unless it is exactly `count`, found out before memory is
    allocated for more than the bytes hold."""
    blobs: list[bytes] = []
    place, end = 0, len(packed)
    if end < 4 * count:
        return None
    while place + 4 <= end and len(blobs) < count:
        start = place + 4
        place = start + int.from_bytes(packed[place:start], "little")
        blobs.append(packed[start:place])
    return blobs if len(blobs) == count and place == end else None


def _texts(tensor: TensorLike, count: int) -> list[str]:
    blobs = unpacked_blobs(tensor.data, count)
    if blobs is None:
        raise ValueError(f"tensor {tensor.name!r} does not have {count} texts with their lengths")
    return [blob.decode() for blob in blobs]
