"""Redis keys of online values: `project/view@version{len:value…}`.

Every join key value is prefixed with its length, so two entities never share a key. The part in braces is the
hash tag: all views of an entity are in one slot of a Redis Cluster. A value that contains a brace ends the
tag earlier, but at the same place for every view of that entity.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flywheel_feature.definitions.model import DataType, View

_SHORT = 256
_LENGTHS = [b"%d:" % n for n in range(_SHORT)]
"""Length prefixes of short values: formatting a number takes longer than building the rest of a key."""

NO_ENTITY = b"!}"
"""Used for a null join key; no entity has it, because the keys of entities begin with a digit."""


def key_prefix(view: View) -> bytes:
    """The part of a key that names the view version."""
    return f"{view.project}/{view.id}@{view.version}{{".encode()


def entity_keys(columns: Sequence[tuple[DataType, Sequence[Any]]]) -> list[bytes]:
    """The part of a key that names the entity, per row; one column per join key, without nulls."""
    encoded = [_encoded(data_type, values) for data_type, values in columns]
    if len(encoded) == 1:
        return [
            _LENGTHS[len(v)] + v + b"}" if len(v) < _SHORT else _with_length(v) + b"}" for v in encoded[0]
        ]
    return [b"".join(map(_with_length, row)) + b"}" for row in zip(*encoded, strict=True)]


def _with_length(value: bytes) -> bytes:
    return b"%d:%b" % (len(value), value)


def _encoded(data_type: DataType, values: Sequence[Any]) -> list[bytes]:
    if data_type == DataType.STRING:
        return [v.encode() for v in values]
    if data_type == DataType.BYTES:
        return [bytes(v) for v in values]
    return [str(int(v)).encode() for v in values]
