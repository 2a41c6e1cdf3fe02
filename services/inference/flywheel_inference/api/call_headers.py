"""What callers ask for in the metadata of a call, whatever its protocol: a priority, a variant."""

from __future__ import annotations

from collections.abc import Iterable

from flywheel_common.grpc.auth import PROMOTE, require_role
from flywheel_protos.inference.v1 import inference_pb2 as pb

PRIORITY_HEADER = "flywheel-priority"
"""low, normal or high, in any case. Anything else counts as no priority, as the number of a newer client."""
VARIANT_HEADER = "flywheel-variant"
"""Name of the variant that must answer the requests of the call."""
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


def forced_variant(metadata: Metadata) -> str:
    """The variant in the header, empty without one. Raises PermissionDenied for callers that may not choose
    which release answers."""
    for key, value in metadata:
        if key == VARIANT_HEADER:
            require_role(PROMOTE, f"send the header {VARIANT_HEADER}")
            return str(value)
    return ""
