"""What is known of a complete checkpoint without reading its state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True)
class Saved:
    """A complete checkpoint, as its marker describes it."""

    uri: str
    step: int
    attempt: int
    world: int
    size_bytes: int
    time_us: int
    """When it was complete; 0 in markers of older versions."""
    metrics: Mapping[str, float]

    @classmethod
    def of(cls, prefix: str, marker: Mapping[str, Any]) -> Self:
        """The checkpoint at an `s3://bucket/prefix`."""
        return cls(
            prefix,
            marker["step"],
            marker["attempt"],
            marker["world"],
            sum(marker["files"].values()),
            marker.get("time_us", 0),
            marker.get("metrics", {}),
        )
