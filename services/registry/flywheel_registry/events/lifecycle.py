"""The events that the registry emits. Models are full names; versions, releases and rollouts are numbers."""

from __future__ import annotations

from dataclasses import dataclass

from flywheel_registry.stages.transitions import Stage


@dataclass(frozen=True, slots=True)
class StageChanged:
    """A version changed its stage; `release` is set when this changed what the model serves."""

    model: str
    version: int
    from_stage: Stage
    to_stage: Stage
    actor: str
    reason: str
    release: int | None = None


@dataclass(frozen=True, slots=True)
class RolloutChanged:
    """A rollout changed its state or the challenger's share of the traffic.

    `alert` means that a person should look at it: it ended by itself without a promotion, stalls, or has
    been paused for a day.
    """

    model: str
    rollout: int
    state: str
    challenger_percent: float
    champion: int | None
    challenger: int
    reason: str
    alert: bool = False
