"""Look-ups of rollouts that raise an error when the rollout does not exist."""

from __future__ import annotations

from flywheel_registry.rollouts.errors import UnknownRollout
from flywheel_registry.rollouts.names import RolloutName
from flywheel_registry.rollouts.ports import RolloutRecords
from flywheel_registry.rollouts.rollout import Rollout


async def find_rollout(records: RolloutRecords, name: RolloutName) -> Rollout:
    """Return the rollout. Raises UnknownRollout."""
    found = await records.rollout(name.parent, name.number)
    if found is None:
        raise UnknownRollout(
            f"Rollout {name} does not exist: list the rollouts of {name.parent}.", rollout=name
        )
    return found
