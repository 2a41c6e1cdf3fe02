"""The port of watch policies."""

from __future__ import annotations

from typing import Protocol

from flywheel_monitor.models.policy import MonitorPolicy


class Policies(Protocol):
    """The policy of each model. A model exists once a policy was set for it or an ingested batch named it;
    without a policy of its own it has the default policy."""

    async def set_policy(self, model: str, policy: MonitorPolicy) -> None:
        """Replace the model's policy."""
        ...

    async def policy(self, model: str) -> MonitorPolicy | None:
        """None for a model that does not exist."""
        ...

    async def policies(self) -> list[tuple[int, str, MonitorPolicy]]:
        """(id, name, policy) of every model."""
        ...
