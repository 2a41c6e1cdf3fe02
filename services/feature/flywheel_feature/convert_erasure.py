"""EraseEntity: flywheel.feature.v1 → domain."""

from __future__ import annotations

from collections.abc import Mapping

from flywheel_common.errors import InvalidArgument
from flywheel_common.value import coerce
from flywheel_feature.definitions import Entity
from flywheel_feature.erasing import EraseRequest
from flywheel_feature.keys import entity_keys
from flywheel_protos.types.v1.value_pb2 import Value


def to_erase(project: str, entity: Entity, given: Mapping[str, Value]) -> EraseRequest:
    """Raises InvalidArgument MISSING_JOIN_KEY, UNKNOWN_FIELD, WRONG_TYPE."""
    unknown = sorted(set(given) - {k.name for k in entity.join_keys})
    if unknown:
        raise InvalidArgument(
            f"{entity.name} has no join key {unknown[0]!r}; it has: {', '.join(k.name for k in entity.join_keys)}.",
            reason="UNKNOWN_FIELD",
        )
    columns = []
    for key in entity.join_keys:
        value = coerce(given[key.name], int(key.data_type), key.name) if key.name in given else None
        if value is None:
            raise InvalidArgument(
                f"Join key {key.name!r} of {entity.name} is missing: an entity is erased by all of its keys.",
                reason="MISSING_JOIN_KEY",
                key=key.name,
            )
        columns.append((key.data_type, [value]))
    return EraseRequest(project, entity.id, entity_keys(columns)[0])
