"""The step of a rollout that routed a request."""

from __future__ import annotations

from typing import NamedTuple


class RolloutStep(NamedTuple):
    """A rollout and the generation of the routing, which tells its steps apart; empty without a rollout."""

    rollout: str = ""
    generation: int = 0


NO_ROLLOUT = RolloutStep()
