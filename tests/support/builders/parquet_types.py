"""Columns of every type that a Parquet file may have, and what each declared type makes of them."""

from __future__ import annotations

from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any

import pyarrow as pa

from flywheel_feature.definitions.model import DataType

D = DataType
Expected = dict[DataType, Any]
"""Declared type → the value of the second row; the first row is null. A type that is missing is refused."""

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
NOON_MICROS = 1_714_564_800_000_000  # date -u -d 2024-05-01T12:00:00Z +%s, times 10^6
MIDNIGHT = datetime(2024, 5, 1, tzinfo=UTC)
SEVEN: Expected = {D.INT64: 7, D.FLOAT32: 7.0, D.FLOAT64: 7.0}
HALF: Expected = {D.FLOAT32: 2.5, D.FLOAT64: 2.5}
NULL: Expected = dict.fromkeys(D)
VECTOR_SIZE = 2


def _values(kind: pa.DataType, value: Any) -> pa.Array:
    return pa.array([None, value], kind)


def _lists(kind: pa.DataType, expected: Expected, size: int = VECTOR_SIZE) -> tuple[pa.Array, Expected]:
    of_lists = {D.INT64: D.INT64_LIST, D.FLOAT32: D.FLOAT32_LIST, D.FLOAT64: D.FLOAT64_LIST}
    of_vectors = {D.FLOAT32: D.FLOAT32_VECTOR, D.FLOAT64: D.FLOAT64_VECTOR} if size == VECTOR_SIZE else {}
    found = {
        declared: [expected[element]] * size
        for elements in (of_lists, of_vectors)
        for element, declared in elements.items()
        if element in expected
    }
    return pa.array([None, [expected[D.FLOAT64]] * size], kind), found


def _storage(kind: Any, storage: pa.Array) -> pa.Array:
    return pa.ExtensionArray.from_storage(kind, storage)


PARQUET: dict[str, tuple[pa.Array, Expected]] = {
    "null": (pa.nulls(2), NULL),
    "bool": (_values(pa.bool_(), True), {D.BOOL: True}),
    **{
        str(kind): (_values(kind, 7), SEVEN)
        for kind in (
            *(pa.int8(), pa.int16(), pa.int32(), pa.int64()),
            *(pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()),
        )
    },
    **{str(kind): (_values(kind, 2.5), HALF) for kind in (pa.float16(), pa.float32(), pa.float64())},
    "whole double": (_values(pa.float64(), 7.0), SEVEN),
    "NaN": (_values(pa.float64(), float("nan")), dict.fromkeys(list(D)[:7])),
    "decimal32": (_values(pa.decimal32(5, 2), Decimal("2.50")), HALF),
    "decimal64": (_values(pa.decimal64(12, 2), Decimal("2.50")), HALF),
    "decimal128": (_values(pa.decimal128(38, 2), Decimal("2.50")), HALF),
    "decimal128 of scale 0": (_values(pa.decimal128(38, 0), Decimal(7)), SEVEN),
    "decimal256": (_values(pa.decimal256(76, 2), Decimal("2.50")), HALF),
    "decimal256 of scale 50": (_values(pa.decimal256(76, 50), Decimal("2.50")), HALF),
    "decimal256 of 40 digits": (
        _values(pa.decimal256(76, 38), Decimal("12.34567890123456789012345678901234567890")),
        {D.FLOAT32: 12.34567928314209, D.FLOAT64: 12.345678901234567},
    ),
    "decimal256 above 2^63": (
        _values(pa.decimal256(76, 2), Decimal(10) ** 39),
        {D.FLOAT64: 1e39},
    ),
    "decimal256 beside a whole float": (
        _values(pa.decimal256(76, 38), Decimal("12.00000000000000000000000000000000000001")),
        {},
    ),
    **{str(k): (_values(k, "01"), {D.STRING: "01"}) for k in (pa.string(), pa.large_string())},
    "string_view": (_values(pa.string_view(), "01"), {D.STRING: "01"}),
    "dictionary": (_values(pa.string(), "01").dictionary_encode(), {D.STRING: "01"}),
    "dictionary of integers": (_values(pa.int32(), 7).dictionary_encode(), SEVEN),
    "dictionary of decimals": (_values(pa.decimal128(9, 2), Decimal("2.50")).dictionary_encode(), HALF),
    "json": (_storage(pa.json_(), _values(pa.string(), "{}")), {D.STRING: "{}"}),
    **{
        str(kind): (_values(kind, b"\x00\xff"), {D.BYTES: b"\x00\xff"})
        for kind in (pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(2))
    },
    "uuid": (_storage(pa.uuid(), _values(pa.binary(16), bytes(range(16)))), {D.BYTES: bytes(range(16))}),
    "date32": (_values(pa.date32(), date(2024, 5, 1)), {D.TIMESTAMP: MIDNIGHT}),
    "date64": (_values(pa.date64(), date(2024, 5, 1)), {D.TIMESTAMP: MIDNIGHT}),
    **{
        f"timestamp[{unit}, {zone}]": (
            _values(pa.timestamp(unit, zone), NOON_MICROS // 10**6 * per_second),
            {D.TIMESTAMP: NOON},
        )
        for unit, per_second in (("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9))
        for zone in (None, "UTC", "America/New_York", "+05:30")
    },
    "nanoseconds are cut": (_values(pa.timestamp("ns"), NOON_MICROS * 1000 + 999), {D.TIMESTAMP: NOON}),
    "time32": (_values(pa.time32("ms"), time(12)), {}),
    "time64": (_values(pa.time64("ns"), time(12)), {}),
    "duration": (_values(pa.duration("us"), 7), {}),
    "list": _lists(pa.list_(pa.int64()), SEVEN),
    "large_list": _lists(pa.large_list(pa.float32()), HALF),
    "fixed_size_list": _lists(pa.list_(pa.float64(), 2), HALF),
    "list_view": _lists(pa.list_view(pa.int32()), SEVEN),
    "large_list_view": _lists(pa.large_list_view(pa.float64()), HALF),
    "list of half floats": _lists(pa.list_(pa.float16()), HALF),
    "list of decimals": (
        pa.array([None, [Decimal("2.50")]], pa.list_(pa.decimal256(60, 2))),
        {D.FLOAT32_LIST: [2.5], D.FLOAT64_LIST: [2.5]},
    ),
    "list of texts": (
        pa.array([None, ["b", "a"]], pa.list_(pa.string_view())),
        {D.STRING_LIST: ["b", "a"]},
    ),
    "list of dictionaries": (
        pa.array([None, ["b", "a"]], pa.list_(pa.dictionary(pa.int32(), pa.string()))),
        {D.STRING_LIST: ["b", "a"]},
    ),
    "list of another size": _lists(pa.list_(pa.int64()), SEVEN, size=3),
    "empty list": (
        pa.array([None, []], pa.list_(pa.int64())),
        {kind: [] for kind in D if kind.is_list},
    ),
    "list with a null": (pa.array([None, [1, None]], pa.list_(pa.int64())), {}),
    "list with NaN": (pa.array([None, [1.0, float("nan")]], pa.list_(pa.float64())), {}),
    "vector with a null": (pa.array([None, [1.0, None]], pa.list_(pa.float32(), 2)), {}),
    "list of lists": (pa.array([None, [[1]]]), {}),
    "list of structs": (pa.array([None, [{"a": 1}]]), {}),
    "struct": (pa.array([None, {"a": Decimal(1)}], pa.struct([("a", pa.decimal256(60, 2))])), {}),
    "map": (pa.array([None, [("a", 1)]], pa.map_(pa.string(), pa.int64())), {}),
}
"""Name of a stored type → (a null and a value, the value per declared type)."""
