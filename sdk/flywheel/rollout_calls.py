"""Calls about rollouts: start, watch, pause, skip, abort, conclude."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Literal

from flywheel.connection import Connection, request_id
from flywheel_protos.registry.v1 import model_pb2, registry_pb2

POLL_SECONDS = 0.5
ACTIVE_STATES = frozenset(
    {
        model_pb2.ROLLOUT_STATE_PENDING_LOAD,
        model_pb2.ROLLOUT_STATE_SHADOW,
        model_pb2.ROLLOUT_STATE_CANARY,
        model_pb2.ROLLOUT_STATE_PAUSED,
    }
)


class RolloutCalls(Connection):
    """Calls of the registry about rollouts. A rollout is named in full, as `Rollout.name`."""

    async def start_rollout(
        self,
        model: str,
        release: str,
        *,
        policy: model_pb2.RolloutPolicy | None = None,
        reason: str = "",
        override: bool = False,
    ) -> model_pb2.Rollout:
        """Starts the rollout of a release (a number or a full name).

        A policy other than the model's, and an override of a failed offline gate, need a reason.
        """
        name = self.path("models", model)
        request = registry_pb2.StartRolloutRequest(
            parent=name,
            challenger_release=f"{name}/releases/{release}" if release.isdigit() else release,
            policy=policy,
            reason=reason,
            request_id=request_id(),
            override=override,
        )
        return (await self.registry.StartRollout(request)).rollout

    async def pause_rollout(self, rollout: str, reason: str) -> model_pb2.Rollout:
        """Stops decisions and the clock of the step; the routing stays."""
        return await self._change_rollout("PauseRollout", rollout, reason)

    async def resume_rollout(self, rollout: str, reason: str) -> model_pb2.Rollout:
        """Resumes a paused rollout."""
        return await self._change_rollout("ResumeRollout", rollout, reason)

    async def skip_rollout_step(self, rollout: str, reason: str) -> model_pb2.Rollout:
        """Moves to the next step without evidence; it begins with its own clock and evidence."""
        return await self._change_rollout("SkipRolloutStep", rollout, reason)

    async def abort_rollout(self, rollout: str, reason: str) -> model_pb2.Rollout:
        """Ends a rollout; the champion answers all requests."""
        return await self._change_rollout("AbortRollout", rollout, reason)

    async def conclude_rollout(
        self, rollout: str, verdict: Literal["SHIP", "ROLL_BACK"], reason: str
    ) -> model_pb2.Rollout:
        """Ends an A/B test by the verdict of its experiment."""
        number = registry_pb2.ExperimentVerdict.Value(f"EXPERIMENT_VERDICT_{verdict}")
        return await self._change_rollout("ConcludeRollout", rollout, reason, verdict=number)

    async def watch_rollout(self, rollout: str) -> AsyncIterator[model_pb2.Rollout]:
        """Yields a rollout at once, after each change of its state, share or reason, and at its end."""
        request, last = registry_pb2.GetRolloutRequest(name=rollout), None
        while True:
            found = (await self.registry.GetRollout(request)).rollout
            seen = found.state, found.challenger_percent, found.reason
            if seen != last:
                last = seen
                yield found
            if found.state not in ACTIVE_STATES:
                return
            await asyncio.sleep(POLL_SECONDS)

    async def _change_rollout(
        self, method: str, rollout: str, reason: str, **fields: Any
    ) -> model_pb2.Rollout:
        request = getattr(registry_pb2, f"{method}Request")(
            name=rollout, reason=reason, request_id=request_id(), **fields
        )
        changed: model_pb2.Rollout = (await getattr(self.registry, method)(request)).rollout
        return changed
