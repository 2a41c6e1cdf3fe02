"""Observed state of a model: for the registry, and for GetServingStatus."""

from __future__ import annotations

from dataclasses import dataclass

from flywheel_inference.routing.route import Variant


@dataclass(frozen=True, slots=True)
class ObservedModel:
    """Report to the registry for one model. `generation`: the one applied completely, 0 for none.
    `failures`: release → why it is not ready."""

    model: str
    generation: int
    ready_releases: tuple[str, ...]
    failures: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingStatus:
    """What this gateway serves for one model. `generation`: the one applied completely, 0 for none.
    `variants`: with the names of their releases."""

    model: str
    generation: int
    champion: str
    challenger: str
    shadow_percent: float
    challenger_percent: float
    ready_releases: tuple[str, ...]
    failures: dict[str, str]
    variants: tuple[Variant[str], ...]
