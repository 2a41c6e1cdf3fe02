"""The priority of a call in its metadata, for protocols whose requests have no field for it."""

from __future__ import annotations

from collections.abc import Iterable

from flywheel_protos.inference.v1 import inference_pb2 as pb

PRIORITY_HEADER = "flywheel-priority"
"""low, normal or high, in any case. Anything else counts as no priority, as the number of a newer client."""
_PRIORITIES = {"low": pb.PRIORITY_LOW, "normal": pb.PRIORITY_NORMAL, "high": pb.PRIORITY_HIGH}

Metadata = Iterable[tuple[str, str | bytes]]


def priority_of(metadata: Metadata) -> int:
    """The number of the priority in the header; PRIORITY_UNSPECIFIED without one."""
    for key, value in metadata:
        if key == PRIORITY_HEADER:
            return _PRIORITIES.get(str(value).lower(), pb.PRIORITY_UNSPECIFIED)
    return pb.PRIORITY_UNSPECIFIED


def is_high(metadata: Metadata) -> bool:
    """Whether the header asks for the highest priority."""
    return priority_of(metadata) == pb.PRIORITY_HIGH
