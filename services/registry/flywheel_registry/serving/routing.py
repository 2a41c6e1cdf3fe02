"""The routing of a model: which releases its gateways serve. Releases and rollouts are numbers."""

from __future__ import annotations

from dataclasses import dataclass

from flywheel_registry.models.variant import Variant


@dataclass(frozen=True, slots=True)
class Routing:
    """The desired routing of one model. `challenger` and `rollout` are set while a rollout is active.

    `generation` increases by one with every change.
    """

    generation: int = 0
    champion: int | None = None
    challenger: int | None = None
    rollout: int | None = None
    shadow_percent: float = 0.0
    challenger_percent: float = 0.0
    variants: tuple[Variant, ...] = ()


def champion_only(routing: Routing, release: int) -> Routing:
    """Return the next routing, with `release` as champion and without a rollout. The variants stay."""
    return Routing(routing.generation + 1, champion=release, variants=routing.variants)
