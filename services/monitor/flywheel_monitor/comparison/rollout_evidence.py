"""The evidence for a rollout: its two variants compared, read on request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from flywheel_common.errors import InvalidName
from flywheel_common.postgres.transactions import Store
from flywheel_monitor.comparison.errors import InvalidAlpha, InvalidReleases
from flywheel_monitor.comparison.ports import VariantCounts, VariantName
from flywheel_monitor.comparison.step_verdicts import StepLimits, StepVerdict, counts_of, step_verdicts
from flywheel_monitor.comparison.variants import Comparison, compare
from flywheel_monitor.experiments.ports import Experiments
from flywheel_monitor.experiments.verdicts import RolloutVerdict, rollout_verdict
from flywheel_monitor.ingest.batches import Role
from flywheel_monitor.models.names import ModelName, NamedVariant, RolloutName
from flywheel_monitor.windows.span import ALL_TIME

DEFAULT_ALPHA = 0.05


class EvidenceRecords(VariantCounts, Experiments, Protocol):
    """What a comparison reads."""


@dataclass(frozen=True)
class RolloutEvidence:
    """A comparison of the predictions of `generation` (0: of all), the first and last event time that they
    cover (`support.covered`), the verdicts on the limits of the step, and the verdict of the experiment that
    decides the rollout."""

    comparison: Comparison
    covered: tuple[int, int] | None
    generation: int
    verdicts: Sequence[StepVerdict] = ()
    experiment: RolloutVerdict | None = None


async def rollout_evidence(
    store: Store[EvidenceRecords],
    rollout: str,
    champion: str,
    challenger: str,
    *,
    shadow: bool,
    start_us: int | None,
    alpha: float,
    generation: int = 0,
    champion_source: str = "",
    limits: StepLimits | None = None,
) -> RolloutEvidence:
    """Compare two releases of a rollout since `start_us`, in the step that began with `generation` of the
    routing (0: in all steps); `alpha` 0 is DEFAULT_ALPHA. `rollout` may be a named variant, and
    `champion_source` what routed the champion's answers if it is another one; for the shadow of a named
    variant it is empty: the champion's statistics are those of requests outside rollouts. Raises
    InvalidAlpha, InvalidLimit, InvalidReleases, InvalidName."""
    model = _model_of(rollout)
    named_shadow = shadow and "/variants/" in rollout
    if not named_shadow:
        champion_source = champion_source or rollout
    if champion_source and _model_of(champion_source) != model:
        raise InvalidReleases(f"{champion_source} does not belong to {model}.", field="champion_source")
    alpha = alpha or DEFAULT_ALPHA
    if not 0 < alpha < 1:
        raise InvalidAlpha(
            f"alpha is {alpha:g}: it must lie between 0 and 1; 0 means {DEFAULT_ALPHA:g}.", field="alpha"
        )
    limits = (limits or StepLimits()).check()
    if not champion or not challenger or champion == challenger:
        raise InvalidReleases("Give two different releases to compare.")
    since = ALL_TIME.start_us if start_us is None else start_us
    challenger_role = Role.SHADOW if shadow else _served_role(rollout, Role.CHALLENGER)
    challenger_name = VariantName(rollout, challenger, challenger_role, generation)
    champion_role = _served_role(champion_source, Role.CHAMPION)
    champion_name = VariantName(champion_source, champion, champion_role, generation)
    async with store.reading() as records:
        names = [champion_name, challenger_name]
        champion_window, challenger_window = await records.variant_windows(names, since)
        # A shadow answers copies of the champion's requests: each request counts once.
        names = [champion_name] if shadow else names
        total = champion_window.predictions + (0 if shadow else challenger_window.predictions)
        if named_shadow:  # Its requests have champions of any source.
            names, total = [challenger_name], challenger_window.predictions
        covered = await records.covered(names, since, total)
        experiment = await rollout_verdict(records, model, rollout, champion, challenger, generation)
    found = compare(champion_window, challenger_window, is_paired=shadow, alpha=alpha)
    verdicts = step_verdicts(counts_of(found, challenger_window), limits)
    return RolloutEvidence(found, covered, generation, verdicts, experiment)


def _model_of(source: str) -> str:
    """The model of a rollout or a named variant. Raises InvalidName."""
    try:
        variant = NamedVariant.parse(source)
        return str(ModelName(variant.project, variant.model))
    except InvalidName:
        rollout = RolloutName.parse(source)
        return str(ModelName(rollout.project, rollout.model))


def _served_role(source: str, role: Role) -> Role:
    """The role of the answers that a rollout routed. A named variant serves any release, also the champion's:
    any role that answers callers."""
    return Role.UNSPECIFIED if "/variants/" in source else role
