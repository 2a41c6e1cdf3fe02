"""Port for online features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from flywheel_common.scoring.feature_block import FeatureBlock
from flywheel_inference.releases.release import FeatureSetContract


class FeatureLookup(Protocol):
    """Reads online features. Raises InvalidArgument for the content of a request, else Unavailable or
    DeadlineExceeded."""

    async def online(
        self,
        contract: FeatureSetContract,
        keys: Sequence[tuple[object, ...]],
        fields: Sequence[tuple[object, ...]],
        as_of_micros: int | None,
        timeout: float,
    ) -> FeatureBlock:
        """One row per key, in order. `as_of_micros` None: now."""
        ...
