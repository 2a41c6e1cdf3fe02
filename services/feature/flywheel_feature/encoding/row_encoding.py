"""Encoding of a batch view's row in Redis: one packed value per (view version, entity).

    0        format (1)
    1        event time, int64 microseconds
    9        created time, int64 microseconds
    17       null bitmap, least significant bit first, bit set = null
    …        fixed-width part: per feature its value, or the byte length of its variable part as uint32
    …        variable parts, in feature order

Numbers are little-endian, texts UTF-8, lists the packed elements; a list of texts is (uint32 length, UTF-8)
per text.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from flywheel_common.arrays import Array, Mask
from flywheel_feature.definitions.model import DataType, Feature
from flywheel_feature.encoding.same_length_values import SameLengthValues

FORMAT = 1
HEADER_BYTES = 17

DTYPES: dict[DataType, np.dtype[Any]] = {
    DataType.BOOL: np.dtype("?"),
    DataType.INT64: np.dtype("<i8"),
    DataType.FLOAT32: np.dtype("<f4"),
    DataType.FLOAT64: np.dtype("<f8"),
    DataType.TIMESTAMP: np.dtype("<i8"),
}
WIDE = frozenset({DataType.FLOAT64, DataType.INT64, DataType.TIMESTAMP})
"""Types whose values take eight bytes."""
_VARIABLE = np.dtype("<u4")


def is_variable(data_type: DataType) -> bool:
    """Whether values of a type have different lengths."""
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
        self.variable = [i for i, f in enumerate(features) if is_variable(f.data_type)]
        self.absent = bytes(self.dtype.itemsize)
        self.bitmap = slice(HEADER_BYTES, HEADER_BYTES + self._bitmap_bytes)
        self.wide = [i for i, f in enumerate(features) if f.data_type in WIDE]
        """Places of the features whose values take eight bytes."""
        assert self.dtype.fields is not None
        starts = [self.dtype.fields[f"f{i}"][1] for i in self.wide]
        self.wide_bytes: slice | npt.NDArray[np.intp]
        if not starts or starts[-1] - starts[0] == 8 * (len(starts) - 1):
            first = starts[0] if starts else 0
            self.wide_bytes = slice(first, first + 8 * len(starts))
        else:
            self.wide_bytes = (np.array(starts)[:, None] + np.arange(8)).ravel()

    def encode(
        self,
        columns: Mapping[str, tuple[Array, Mask]],
        event: npt.NDArray[np.int64],
        created: npt.NDArray[np.int64],
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
            if i in self.variable:
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
        """The columns of n rows; a row that is None has only nulls and event time 0."""
        return DecodedRows(self, rows)


class DecodedRows(Sequence[tuple[Array, Mask]]):
    """One (values, valid) per feature in the view's order, decoded on access.

    Features of eight bytes, the most common ones, are decoded together at once: `bits`.
    """

    __slots__ = ("_begins", "_fixed", "_layout", "_rows", "bits", "event", "found", "valid")

    def __init__(self, layout: RowLayout, rows: Sequence[bytes | None]) -> None:
        self._layout, self._rows = layout, rows
        size = layout.dtype.itemsize
        if isinstance(rows, SameLengthValues) and rows.size == size:
            raw = rows.matrix
        else:
            heads = [r[:size] if r is not None else None for r in rows] if layout.variable else rows
            flat = b"".join([layout.absent if r is None else r for r in heads])
            raw = np.frombuffer(flat, np.uint8).reshape(len(rows), size)
        self._fixed = raw.view(layout.dtype)[:, 0]
        self.found: Mask = raw[:, 0] == FORMAT
        self.event: npt.NDArray[np.int64] = self._fixed["event"].astype(np.int64)
        count = len(layout.features)
        bitmaps = raw[:, layout.bitmap]
        complete = bool(self.found.all()) and not bitmaps.any()
        self.valid: Mask
        """[n, features]."""
        if complete:
            self.valid = np.ones((len(rows), count), np.bool_)
        else:
            nulls = np.unpackbits(bitmaps, axis=1, count=count, bitorder="little")
            self.valid = (nulls == 0) & self.found[:, None]
        wide = layout.wide_bytes
        bits = (raw[:, wide] if isinstance(wide, slice) else raw.take(wide, axis=1)).view("<i8")
        if not complete:
            bits = bits * self.valid[:, layout.wide]
        self.bits: npt.NDArray[np.int64] = bits
        """[n, layout.wide]: the bits of the features of eight bytes, 0 where there is no value."""
        self._begins: list[npt.NDArray[np.int64]] | None = None

    def hide_later_than(self, limit: npt.NDArray[np.int64]) -> Mask | None:
        """Clear the rows whose event time or created time is after `limit` [n]; returns them, None for none.

        A cleared row has only nulls and event time 0, as an absent one, but is still `found`.
        """
        later: Mask = self.found & (np.maximum(self.event, self._fixed["created"]) > limit)
        if not later.any():
            return None
        # As bytes: numpy copies records field by field.
        raw = self._fixed[:, None].view(np.uint8).copy()
        raw[later] = 0
        self._fixed = raw.view(self._layout.dtype)[:, 0]
        self.event = np.where(later, 0, self.event)
        self.valid = self.valid & ~later[:, None]
        self.bits = self.bits * ~later[:, None]
        return later

    @property
    def columns(self) -> Sequence[tuple[Array, Mask]]:
        return self

    def __len__(self) -> int:
        return len(self._layout.features)

    @overload
    def __getitem__(self, index: int) -> tuple[Array, Mask]: ...
    @overload
    def __getitem__(self, index: slice) -> list[tuple[Array, Mask]]: ...
    def __getitem__(self, index: int | slice) -> tuple[Array, Mask] | list[tuple[Array, Mask]]:
        layout = self._layout
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        if not 0 <= index < len(self):
            raise IndexError(index)
        valid = self.valid[:, index]
        values: Array = self._fixed[f"f{index}"]
        if index in layout.variable:
            place = layout.variable.index(index)
            lengths = values.astype(np.int64)
            values = _variable_values(
                self._rows, self._starts()[place], lengths, valid, layout.features[index].data_type
            )
        return values, valid

    def _starts(self) -> list[npt.NDArray[np.int64]]:
        """The start of the variable part of every variable feature, per row."""
        if self._begins is None:
            at = np.full(len(self._rows), self._layout.dtype.itemsize, dtype=np.int64)
            self._begins = []
            for i in self._layout.variable:
                self._begins.append(at)
                at = at + self._fixed[f"f{i}"].astype(np.int64)
        return self._begins


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
