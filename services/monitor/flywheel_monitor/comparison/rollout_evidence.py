"""The evidence for a rollout: its two variants compared, read on request."""

from __future__ import annotations

from dataclasses import dataclass

from flywheel_common.postgres.transactions import Store
from flywheel_monitor.comparison.errors import InvalidAlpha, InvalidReleases
from flywheel_monitor.comparison.ports import VariantCounts, VariantName
from flywheel_monitor.comparison.variants import Comparison, compare
from flywheel_monitor.ingest.batches import Role
from flywheel_monitor.models.names import RolloutName
from flywheel_monitor.windows.span import ALL_TIME

DEFAULT_ALPHA = 0.05


@dataclass(frozen=True)
class RolloutEvidence:
    """A comparison, and the first and last event time that its predictions cover (`support.covered`)."""

    comparison: Comparison
    covered: tuple[int, int] | None


async def rollout_evidence(
    store: Store[VariantCounts],
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
    challenger_name = VariantName(rollout, challenger, Role.SHADOW if shadow else Role.CHALLENGER, generation)
    champion_name = VariantName(rollout, champion, Role.CHAMPION, generation)
    async with store.reading() as records:
        champion_window = await records.variant_window(champion_name, since)
        challenger_window = await records.variant_window(challenger_name, since)
        # A shadow answers copies of the champion's requests: each request counts once.
        names = [champion_name] if shadow else [champion_name, challenger_name]
        total = champion_window.predictions + (0 if shadow else challenger_window.predictions)
        covered = await records.covered(names, since, total)
    return RolloutEvidence(
        compare(champion_window, challenger_window, is_paired=shadow, alpha=alpha), covered
    )
