"""TODO docstring."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from flywheel_inference.models.feature_block import FeatureBlock
from flywheel_inference.releases.release import Contract


class FeatureLookup(Protocol):
    """Reads the features of a feature set. Raises InvalidArgument for content, Unavailable or DeadlineExceeded else."""

    async def online(
        self,
        contract: Contract,
        keys: Sequence[tuple[object, ...]],
        fields: Sequence[tuple[object, ...]],
        as_of_micros: int | None,
        timeout: float,
    ) -> FeatureBlock: ...
