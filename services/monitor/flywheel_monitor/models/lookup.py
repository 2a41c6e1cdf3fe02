"""Finding the policy of a model."""

from __future__ import annotations

from flywheel_monitor.models.errors import UnknownModel
from flywheel_monitor.models.policy import MonitorPolicy
from flywheel_monitor.models.ports import Policies


async def existing_policy(records: Policies, model: str) -> MonitorPolicy:
    """The policy of a model. Raises UnknownModel."""
    policy = await records.policy(model)
    if policy is None:
        raise UnknownModel(
            f"The monitor does not know model {model}: set a policy for it, or send predictions first.",
            model=model,
        )
    return policy
