"""The port to outgoing events."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

from flywheel_registry.events.lifecycle import RolloutChanged, StageChanged


class EventRecords(Protocol):
    """The outgoing events of one transaction."""

    async def emit(self, event: StageChanged | RolloutChanged, at: datetime) -> None:
        """Send the event if and only if this transaction commits, in order per model.

        It carries the head of the model's audit as this transaction leaves it.
        """
        ...
