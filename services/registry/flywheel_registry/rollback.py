"""The rollback: one transaction, then waiting until every live gateway applies it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from flywheel_common.clock import Clock
from flywheel_common.errors import FailedPrecondition, InvalidArgument
from flywheel_registry.absent import find_release, find_version, lock_model
from flywheel_registry.changes import Changes
from flywheel_registry.names import ReleaseName, VersionName
from flywheel_registry.ports import Gateways, Records
from flywheel_registry.resources import Gateway, Release
from flywheel_registry.rollouts import Rollouts
from flywheel_registry.serving import rollback_target
from flywheel_registry.stages import Stage

POLL_SECONDS = 0.05
"""How often the shared table is read for gateways that report to another replica."""


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """What the live gateways said: `complete` when each of them applies the generation (or none is live)."""

    complete: bool
    seconds: float
    gateways: Sequence[Gateway]


class Rollbacks:
    def __init__(self, clock: Clock, rollouts: Rollouts, gateways: Gateways) -> None:
        self._clock = clock
        self._rollouts = rollouts
        self._gateways = gateways

    async def roll_back(
        self, records: Records, model: str, to_release: ReleaseName | None, reason: str, by: str
    ) -> Release:
        """Serves the release that served before (or a named one that once did), ends an active rollout.
        Raises NothingToRollBackTo, FailedPrecondition REJECTED_VERSION."""
        if to_release is not None and to_release.parent != model:
            raise InvalidArgument(f"{to_release} is not a release of {model}.", reason="WRONG_MODEL")
        await lock_model(records, model)
        spans = await records.spans(model)
        target = rollback_target(spans, to_release.number if to_release else None)
        release = await find_release(records, ReleaseName.parse(f"{model}/releases/{target}"))
        version = await find_version(records, VersionName.parse(f"{model}/versions/{release.version}"))
        if version.stage is Stage.REJECTED:
            raise FailedPrecondition(
                f"{version.name} was REJECTED since it served: name another release with to_release.",
                reason="REJECTED_VERSION",
            )
        changes = Changes(records, model, self._clock.now(), by)
        why = reason or "rollback"
        active = await records.active_rollout(model)
        if active is not None:
            await self._rollouts.end(
                records, changes, active, f"ended by a rollback to {release.name}: {why}"
            )
        await changes.crown(release, version, why, by_rollback=True)
        return release

    async def acknowledged(
        self, model: str, generation: int, *, since: float, timeout_seconds: float
    ) -> Acknowledgement:
        """Waits until every live gateway that serves the model's project applies at least `generation`. `since` is the
        monotonic time from which `seconds` count."""
        heard = asyncio.Event()
        forget = self._gateways.on_heartbeat(heard.set)
        give_up = self._clock.monotonic() + timeout_seconds
        try:
            while True:
                heard.clear()
                concerned = concerned_by(model, await self._gateways.seen(3600.0))
                now = self._clock.monotonic()
                complete = all(applies(gateway, model, generation) for gateway in concerned if gateway.live)
                if complete or now >= give_up:
                    return Acknowledgement(complete, now - since, concerned)
                with suppress(TimeoutError):
                    async with asyncio.timeout(POLL_SECONDS):
                        await heard.wait()
        finally:
            forget()


def concerned_by(model: str, gateways: Sequence[Gateway]) -> list[Gateway]:
    """Gateways that watch the model's project."""
    project = model.split("/")[1]
    return [gateway for gateway in gateways if gateway.project in ("", project)]


def applies(gateway: Gateway, model: str, generation: int) -> bool:
    """Whether a gateway reported that it applies at least this generation of the model's routing."""
    return any(seen.model == model and seen.generation >= generation for seen in gateway.observed)
