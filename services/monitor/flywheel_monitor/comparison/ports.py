"""The port of the counted predictions of variants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from flywheel_monitor.ingest.batches import Role
from flywheel_monitor.windows.counts import WindowCounts


@dataclass(frozen=True)
class VariantName:
    """Names a variant of a rollout, or a named variant, in the step that began with `generation` of the
    routing (0: in all). Role UNSPECIFIED: every role but SHADOW."""

    rollout: str
    release: str
    role: Role
    generation: int = 0


class VariantCounts(Protocol):
    """Counts of a variant's predictions. They remain when single predictions are deleted, but for the part of
    a pane (see `windows.panes`) that `since_us` may cut off."""

    async def variant_windows(self, names: Sequence[VariantName], since_us: int) -> list[WindowCounts]:
        """Counts of each variant's predictions with event time >= `since_us`, with the labels that have
        arrived. A shadow's counts include the requests that the champion of its rollout answered too."""
        ...

    async def covered(
        self, names: Sequence[VariantName], since_us: int, total: int
    ) -> tuple[int, int] | None:
        """The first and last event time that the stored predictions of these variants cover together
        (`support.covered`), of `total` since `since_us`."""
        ...
