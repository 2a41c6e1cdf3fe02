"""A batch view's row in Redis: one packed value per (view version, entity).

    0        format (1)
    1        event time, int64 microseconds
    9        created time, int64 microseconds
    17       null bitmap, least significant bit first, bit set = null
    …        fixed-width part: per feature its value, or the byte length of its variable part as uint32
    …        variable parts, in feature order

Everything is little-endian. Texts are UTF-8; lists are their packed elements; lists of texts are (uint32 length, UTF-8) each.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from flywheel_feature.definitions import DataType, Feature

FORMAT = 1
HEADER_BYTES = 17
Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]
Columns = Mapping[str, tuple[Array, Mask]]

DTYPES: dict[DataType, np.dtype[Any]] = {
    DataType.BOOL: np.dtype("?"),
    DataType.INT64: np.dtype("<i8"),
    DataType.FLOAT32: np.dtype("<f4"),
    DataType.FLOAT64: np.dtype("<f8"),
    DataType.TIMESTAMP: np.dtype("<i8"),
}
_VARIABLE = np.dtype("<u4")


def is_variable(data_type: DataType) -> bool:
    return data_type.is_list or data_type in (DataType.STRING, DataType.BYTES)


class RowLayout:
    """Encodes and decodes rows of a view's features."""

    def __init__(self, features: Sequence[Feature]) -> None:
        self.features = tuple(features)
        self._bitmap_bytes = (len(features) + 7) // 8
        parts: list[Any] = [
            ("format", "u1"),
            ("event", "<i8"),
            ("created", "<i8"),
            ("nulls", "u1", (self._bitmap_bytes,)),
        ]
        for i, feature in enumerate(features):
            if is_variable(feature.data_type):
                parts.append((f"f{i}", _VARIABLE))
            elif feature.data_type.is_vector:
                parts.append((f"f{i}", DTYPES[feature.data_type.element], (feature.vector_size,)))
            else:
                parts.append((f"f{i}", DTYPES[feature.data_type]))
        self.dtype = np.dtype(parts)
        self._variable = [i for i, f in enumerate(features) if is_variable(f.data_type)]
        self._absent = bytes(self.dtype.itemsize)

    def encode(
        self, columns: Columns, event: npt.NDArray[np.int64], created: npt.NDArray[np.int64]
    ) -> list[bytes]:
        """One packed value per row; `columns` by feature name."""
        rows = len(event)
        fixed = np.zeros(rows, dtype=self.dtype)
        fixed["format"], fixed["event"], fixed["created"] = FORMAT, event, created
        nulls = np.zeros((rows, len(self.features)), dtype=np.bool_)
        tails: list[list[bytes]] = []
        for i, feature in enumerate(self.features):
            values, valid = columns[feature.name]
            nulls[:, i] = ~valid
            if i in self._variable:
                parts = [
                    _variable_bytes(v, feature.data_type) if ok else b""
                    for v, ok in zip(values, valid.tolist(), strict=True)
                ]
                fixed[f"f{i}"] = [len(p) for p in parts]
                tails.append(parts)
            else:
                keep = valid if values.ndim == 1 else valid[:, None]
                fixed[f"f{i}"] = np.where(keep, values, np.zeros((), values.dtype))
        if self.features:
            fixed["nulls"] = np.packbits(nulls, axis=1, bitorder="little")
        flat, size = fixed.tobytes(), self.dtype.itemsize
        heads = [flat[i : i + size] for i in range(0, rows * size, size)]
        if not tails:
            return heads
        return [head + b"".join(rest) for head, rest in zip(heads, zip(*tails, strict=True), strict=True)]

    def decode(self, rows: Sequence[bytes | None]) -> DecodedRows:
        """Columns of n rows; absent rows are null everywhere with event time 0."""
        size = self.dtype.itemsize
        if self._variable:
            flat = b"".join([self._absent if r is None else r[:size] for r in rows])
        else:
            flat = b"".join([self._absent if r is None else r for r in rows])
        fixed = np.frombuffer(flat, dtype=self.dtype)
        found: Mask = fixed["format"] == FORMAT
        if self.features:
            bits = np.unpackbits(fixed["nulls"], axis=1, count=len(self.features), bitorder="little")
            valid = (bits == 0) & found[:, None]
        else:
            valid = np.zeros((len(rows), 0), np.bool_)
        columns: list[tuple[Array, Mask]] = []
        ends = np.full(len(rows), size, dtype=np.int64)
        for i, feature in enumerate(self.features):
            values: Array = fixed[f"f{i}"]
            if i in self._variable:
                lengths = values.astype(np.int64)
                values = _variable_values(rows, ends, lengths, valid[:, i], feature.data_type)
                ends += lengths
            columns.append((values, valid[:, i]))
        return DecodedRows(found, fixed["event"].astype(np.int64), columns)


class DecodedRows:
    """`columns`: one (values, valid) per feature, in the view's order."""

    __slots__ = ("columns", "event", "found")

    def __init__(self, found: Mask, event: npt.NDArray[np.int64], columns: list[tuple[Array, Mask]]) -> None:
        self.found = found
        self.event = event
        self.columns = columns


def _variable_bytes(value: Any, data_type: DataType) -> bytes:
    if data_type == DataType.STRING:
        return str(value).encode()
    if data_type == DataType.BYTES:
        return bytes(value)
    if data_type == DataType.STRING_LIST:
        texts = [str(v).encode() for v in value]
        return b"".join(struct.pack("<I", len(t)) + t for t in texts)
    return np.ascontiguousarray(value, dtype=DTYPES[data_type.element]).tobytes()


def _variable_values(
    rows: Sequence[bytes | None],
    starts: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    valid: Mask,
    data_type: DataType,
) -> Array:
    values = np.empty(len(rows), dtype=object)
    empty: Any = (
        ""
        if data_type == DataType.STRING
        else b""
        if data_type == DataType.BYTES
        else _list_of(b"", data_type)
    )
    for i, row in enumerate(rows):
        if row is None or not valid[i]:
            values[i] = empty
            continue
        raw = row[starts[i] : starts[i] + lengths[i]]
        if data_type == DataType.STRING:
            values[i] = raw.decode()
        elif data_type == DataType.BYTES:
            values[i] = raw
        else:
            values[i] = _list_of(raw, data_type)
    return values


def _list_of(raw: bytes, data_type: DataType) -> Array:
    if data_type != DataType.STRING_LIST:
        return np.frombuffer(raw, dtype=DTYPES[data_type.element])
    texts: list[str] = []
    at = 0
    while at < len(raw):
        (length,) = struct.unpack_from("<I", raw, at)
        texts.append(raw[at + 4 : at + 4 + length].decode())
        at += 4 + length
    found = np.empty(len(texts), dtype=object)
    found[:] = texts
    return found
