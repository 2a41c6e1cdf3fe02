"""The ports to stored rollouts, to the monitor, and to the lease of the ticker."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Protocol

from flywheel_registry.rollouts.comparison import Comparison
from flywheel_registry.rollouts.rollout import Rollout, RolloutStep
from flywheel_registry.rollouts.state_machine import Progress
from flywheel_registry.serving.ports import ServingRecords
from flywheel_registry.webhooks.ports import WebhookRecords


class RolloutRecords(ServingRecords, WebhookRecords, Protocol):
    """Rollouts, beside all other records of the same transaction."""

    async def add_rollout(self, rollout: Rollout) -> Rollout:
        """Add a rollout with the next number of its model.

        Raises ConcurrentRolloutStart when the model has an active rollout.
        """
        ...

    async def rollout(self, model: str, number: int) -> Rollout | None: ...

    async def active_rollout(self, model: str) -> Rollout | None: ...

    async def rollouts(self, model: str, before: int, limit: int) -> list[Rollout]:
        """Return rollouts with a number below `before`, newest first."""
        ...

    async def undecided_rollouts(self) -> list[Rollout]:
        """Return the rollouts of all models that the ticker may change: active and not paused."""
        ...

    async def paused_rollouts(self, at: datetime) -> list[Rollout]:
        """Return the rollouts of all models that are paused and have been since `at` or longer."""
        ...

    async def change_rollout(self, rollout: Rollout, step: RolloutStep) -> None:
        """Store the new progress and append `step` to the history."""
        ...

    async def note_alert(self, rollout: Rollout) -> None:
        """Store `alerted_at`. The transaction holds the model's lock."""
        ...

    async def note_hold(self, rollout: Rollout, progress: Progress) -> None:
        """Store what a hold changes, unless the rollout has left that step: `reason`, `step_started_at`,
        `alerted_at` and the evidence."""
        ...


class Monitor(Protocol):
    """Compares the predictions of challenger and champion."""

    async def compare(self, rollout: Rollout) -> Comparison | None:
        """Return the comparison of the predictions of `rollout.generation`, None without one. Never
        raises."""
        ...


class TickerLease(Protocol):
    """Makes sure that at most one replica decides rollouts at a time."""

    async def run(self, work: Callable[[int], Awaitable[None]]) -> None:
        """Run `work(fencing token)` whenever this replica holds the lease, until cancelled."""
        ...
