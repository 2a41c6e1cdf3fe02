"""A model with versions, releases and a champion in a registry's store, and rollouts of it, without gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from flywheel_common.clock import ManualClock
from flywheel_common.postgres.transactions import Store
from flywheel_registry.fakes.gateways import MemoryGateways
from flywheel_registry.fakes.store import MemoryStore
from flywheel_registry.models.model import Model
from flywheel_registry.models.names import VersionName
from flywheel_registry.models.version import ModelVersion
from flywheel_registry.policies.gate_policy import GatePolicy
from flywheel_registry.policies.rollout_policy import RolloutPolicy
from flywheel_registry.promotion.promotion import Promotions
from flywheel_registry.releases.names import ReleaseName
from flywheel_registry.releases.release import Release
from flywheel_registry.rollouts.comparison import Comparison
from flywheel_registry.rollouts.lifecycle import RolloutLifecycle
from flywheel_registry.rollouts.loading import GATEWAY_SECONDS
from flywheel_registry.rollouts.names import RolloutName
from flywheel_registry.rollouts.ports import RolloutRecords
from flywheel_registry.rollouts.rollout import Rollout
from flywheel_registry.rollouts.start import RolloutStart
from flywheel_registry.rollouts.ticker import Ticker
from flywheel_registry.serving.gateways import ObservedModel
from flywheel_registry.stages.transitions import Stage
from tests.support.builders.step_evidence import Counted, compared

LATE = "projects/p/models/late"
AT = datetime(2026, 1, 1, tzinfo=UTC)


class StepMonitor:
    """`Monitor` that judges the counts of each step, by model and generation; `default` for the others.

    `hangs` are rollouts without any answer.
    """

    def __init__(self) -> None:
        self.default: Counted | None = None
        self.steps: dict[tuple[str, int], Counted | Exception] = {}
        self.hangs: set[str] = set()

    async def compare(self, rollout: Rollout) -> Comparison | None:
        if rollout.name in self.hangs:
            await asyncio.Event().wait()
        answer = self.steps.get((rollout.model, rollout.generation), self.default)
        if isinstance(answer, Exception):
            raise answer
        return None if answer is None else compared(answer, rollout)


@dataclass
class Simulation:
    """One model on a store, with a clock that only `ticks` moves."""

    store: Store[RolloutRecords] = field(default_factory=MemoryStore)
    clock: ManualClock = field(default_factory=lambda: ManualClock(AT))
    monitor: StepMonitor = field(default_factory=StepMonitor)
    model: str = LATE

    def __post_init__(self) -> None:
        self.gateways = MemoryGateways(self.clock)
        self.lifecycle = RolloutLifecycle(self.clock)
        self.start = RolloutStart(self.clock)
        self.loaded: set[str] = set()
        self.failures: dict[str, str] = {}
        self.restart()

    def restart(self) -> None:
        """Replace the ticker, as a restart or another replica does."""
        self.ticker = Ticker(self.store, self.lifecycle, self.monitor, self.gateways, self.clock, 1.0)

    async def create(
        self, *, gate: GatePolicy | None = None, policy: RolloutPolicy | None = None, champion: bool = True
    ) -> None:
        """Create the model; with `champion`, its first version serves."""
        async with self.store.transaction() as records:
            model = Model(self.model, gate_policy=gate or GatePolicy(), created_at=AT)
            if policy is not None:
                model = Model(self.model, gate_policy=model.gate_policy, rollout_policy=policy, created_at=AT)
            await records.add_model(model)
        if champion:
            rollout = await self.begin(await self.release(auc=0.7))
            await self.skip(rollout.number, loaded=True)

    async def release(self, *, stage: Stage | None = Stage.STAGING, **metrics: float) -> int:
        """Add a version with a release and promote it to `stage`; return the release's number."""
        async with self.store.transaction() as records:
            version = await records.add_version(ModelVersion(self.model, metrics=metrics, registered_at=AT))
            await records.record_check(version, ())
            release = await records.add_release(Release(self.model, version.number, created_at=AT))
        if stage is not None:
            await self.promote(version.number, stage)
        return release.number

    async def promote(
        self, version: int, stage: Stage, *, override: bool = False, added: Mapping[str, float] | None = None
    ) -> bool:
        async with self.store.transaction() as records:
            result = await Promotions(self.clock).promote(
                records,
                VersionName.numbered(self.model, version),
                stage,
                "test",
                "ann",
                override=override,
                check_path=lambda path: None,
                added=added or {},
            )
        return result.passed

    async def begin(
        self, release: int, policy: RolloutPolicy | None = None, *, reason: str = "go", override: bool = False
    ) -> Rollout:
        """Start the rollout of a release."""
        async with self.store.transaction() as records:
            name = ReleaseName.numbered(self.model, release)
            return await self.start.start(records, name, policy, reason, "ann", override=override)

    async def rollout(self, number: int) -> Rollout:
        async with self.store.reading() as records:
            found = await records.rollout(self.model, number)
        assert found is not None
        return found

    async def stage(self, version: int) -> Stage:
        async with self.store.reading() as records:
            found = await records.version(self.model, version)
        assert found is not None
        return found.stage

    async def change(self, what: str, number: int, *arguments: Any) -> Rollout:
        """Call a method of `RolloutLifecycle` for a rollout."""
        async with self.store.transaction() as records:
            name = RolloutName.numbered(self.model, number)
            result: Rollout = await getattr(self.lifecycle, what)(records, name, *arguments, "why", "ann")
            return result

    async def skip(self, number: int, *, loaded: bool = False) -> Rollout:
        """Skip the step of a rollout; `loaded`: a gateway, which then leaves, has loaded its challenger."""
        if loaded:
            challenger = f"{self.model}/releases/{(await self.rollout(number)).challenger}"
            await self.gateways.heartbeat("other", [ObservedModel(self.model, 1, (challenger,))])
        gateways = await self.gateways.recent(GATEWAY_SECONDS)
        await self.gateways.remove("other")
        return await self.change("skip", number, gateways)

    async def heartbeat(self) -> None:
        """Report one live gateway, with what it has loaded and what failed."""
        ready = tuple(sorted(self.loaded))
        await self.gateways.heartbeat("g", [ObservedModel(self.model, 1, ready, self.failures)])

    async def ticks(self, seconds: float, *, every: float = 60.0, gateway: bool = True) -> None:
        """Let time pass and tick all active rollouts `every` seconds."""
        left = seconds
        while left > 0:
            self.clock.advance(min(every, left))
            left -= every
            if gateway:
                await self.heartbeat()
            async with asyncio.TaskGroup() as ticks:
                await self.ticker.start_ticks(ticks)
