"""The evidence for a rollout: its two variants compared, read on request."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flywheel_common.postgres.transactions import Store
from flywheel_monitor.comparison.errors import InvalidAlpha, InvalidReleases
from flywheel_monitor.comparison.ports import VariantPredictions
from flywheel_monitor.comparison.variants import Comparison, compare
from flywheel_monitor.ingest.batches import Role
from flywheel_monitor.models.names import RolloutName
from flywheel_monitor.windows.span import ALL_TIME
from flywheel_monitor.windows.support import covered

DEFAULT_ALPHA = 0.05


@dataclass(frozen=True)
class RolloutEvidence:
    """A comparison, and the first and last event time that its predictions cover (`support.covered`)."""

    comparison: Comparison
    covered: tuple[int, int] | None


async def rollout_evidence(
    store: Store[VariantPredictions],
    rollout: str,
    champion: str,
    challenger: str,
    *,
    shadow: bool,
    start_us: int | None,
    alpha: float,
    generation: int = 0,
) -> RolloutEvidence:
    """Compare two releases of a rollout since `start_us`, in the step that began with `generation` of the
    routing (0: in all steps); `alpha` 0 is DEFAULT_ALPHA. Raises InvalidAlpha,
    InvalidReleases."""
    RolloutName.parse(rollout)
    alpha = alpha or DEFAULT_ALPHA
    if not 0 < alpha < 1:
        raise InvalidAlpha(
            f"alpha is {alpha:g}: it must lie between 0 and 1; 0 means {DEFAULT_ALPHA}.", field="alpha"
        )
    if not champion or not challenger or champion == challenger:
        raise InvalidReleases("Give two different releases to compare.")
    since = ALL_TIME.start_us if start_us is None else start_us
    role = Role.SHADOW if shadow else Role.CHALLENGER
    async with store.reading() as records:
        challenger_rows = await records.variant_rows(rollout, challenger, role, since, generation)
        champion_rows = await records.variant_rows(rollout, champion, Role.CHAMPION, since, generation)
    found = compare(champion_rows, challenger_rows, is_paired=shadow, alpha=alpha)
    # A request that both predicted counts once.
    times = {
        prediction: time
        for rows in (champion_rows, challenger_rows)
        for prediction, time in zip(rows.ids, rows.event_times.tolist(), strict=True)
    }
    return RolloutEvidence(found, covered(np.fromiter(times.values(), np.int64, len(times))))
