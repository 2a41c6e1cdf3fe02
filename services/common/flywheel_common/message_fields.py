"""Parts of encoded protobuf messages, for messages that are joined from bytes."""

from __future__ import annotations

from typing import Any

_LENGTH_DELIMITED = 2
"""Wire type of nested messages, texts, bytes and packed numbers, which follow their length."""


def prefix(field: Any, length: int) -> bytes:
    """Tag and length of a length-delimited field; `field` is its descriptor."""
    return _varint(field.number << 3 | _LENGTH_DELIMITED) + _varint(length)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
