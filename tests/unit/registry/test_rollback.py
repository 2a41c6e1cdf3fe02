"""Rollback of a model, on the store in memory."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from flywheel_common.clock import ManualClock
from flywheel_registry.events.lifecycle import StageChanged
from flywheel_registry.fakes.store import MemoryStore
from flywheel_registry.models.model import Model
from flywheel_registry.models.names import VersionName
from flywheel_registry.models.version import ModelVersion
from flywheel_registry.promotion.promotion import Promotions
from flywheel_registry.releases.names import ReleaseName
from flywheel_registry.releases.release import Release
from flywheel_registry.rollback.errors import NothingToRollBackTo
from flywheel_registry.rollback.rollback import Rollbacks
from flywheel_registry.rollouts.lifecycle import RolloutLifecycle
from flywheel_registry.rollouts.names import RolloutName
from flywheel_registry.rollouts.rollout import Rollout
from flywheel_registry.rollouts.start import RolloutStart
from flywheel_registry.rollouts.state_machine import RolloutState
from flywheel_registry.serving.gateways import Gateway, ObservedModel
from flywheel_registry.stages.transitions import Stage

LATE = "projects/p/models/late"
AT = datetime(2026, 1, 1, tzinfo=UTC)
CLOCK = ManualClock(AT)
LIFECYCLE = RolloutLifecycle(CLOCK)


def loaded_by_a_gateway(rollout: Rollout) -> list[Gateway]:
    """One live gateway that has loaded the challenger."""
    ready = (f"{LATE}/releases/{rollout.challenger}",)
    return [Gateway("g", AT, live=True, observed=(ObservedModel(LATE, 1, ready),))]


async def served(*versions: int) -> MemoryStore:
    """Return a store in which one release of each version was promoted, in this order."""
    store = MemoryStore()
    async with store.transaction() as records:
        await records.add_model(Model(LATE, created_at=AT))
        for _ in range(max(versions)):
            await records.add_version(ModelVersion(LATE, registered_at=AT, check_problems=()))
    for number in versions:
        async with store.transaction() as records:
            await records.add_release(Release(LATE, number, created_at=AT))
            version = await records.version(LATE, number)
            if version is not None and version.stage is Stage.PRODUCTION:
                continue
            await Promotions(CLOCK).promote(
                records,
                VersionName.numbered(LATE, number),
                Stage.PRODUCTION,
                "test",
                "ann",
                override=True,
                check_path=lambda path: None,
                added={},
            )
    return store


async def roll_back(store: MemoryStore, to: int | None = None) -> int | None:
    """Roll back and return the release that serves then."""
    async with store.transaction() as records:
        release = None if to is None else ReleaseName.numbered(LATE, to)
        await Rollbacks(CLOCK, LIFECYCLE).roll_back(records, LATE, release, "bad", "ann")
    async with store.reading() as records:
        return (await records.routing(LATE)).champion


async def reject(store: MemoryStore, number: int) -> None:
    async with store.transaction() as records:
        await Promotions(CLOCK).reject(records, VersionName.numbered(LATE, number), "worse", "ann")


async def test_a_rollback_goes_past_a_release_whose_version_was_rejected() -> None:
    store = await served(1, 2, 3)
    await reject(store, 2)
    assert 1 == await roll_back(store)
    await reject(store, 3)
    with pytest.raises(NothingToRollBackTo):
        await roll_back(store)


async def test_a_rollback_in_canary_ends_the_rollout_and_keeps_the_champion() -> None:
    store = await served(1, 2)
    async with store.transaction() as records:
        version = await records.add_version(
            ModelVersion(LATE, stage=Stage.STAGING, registered_at=AT, check_problems=())
        )
        release = await records.add_release(Release(LATE, version.number, created_at=AT))
        rollout = await RolloutStart(CLOCK).start(records, ReleaseName.parse(release.name), None, "go", "ann")
        name = RolloutName.parse(rollout.name)
        while not (await records.routing(LATE)).challenger_percent:
            await LIFECYCLE.skip(records, name, loaded_by_a_gateway(rollout), "known", "ann")
    assert 2 == await roll_back(store)
    async with store.reading() as records:
        ended = await records.rollout(LATE, rollout.number)
        assert ended is not None
        assert RolloutState.ROLLED_BACK is ended.progress.state
        champion, challenger = await records.version(LATE, 2), await records.version(LATE, 3)
        assert champion is not None and challenger is not None
        assert (Stage.PRODUCTION, Stage.CANDIDATE) == (champion.stage, challenger.stage)
        assert (None, 0.0) == _challenger(await records.routing(LATE))
        assert ["ROLLBACK"] == [e.action for e in await records.audit(LATE, 1 << 30, 1)]
    # Nothing is rolled out now, so the next rollback concerns the champion.
    assert 1 == await roll_back(store)


async def test_a_named_rollback_in_canary_replaces_the_champion() -> None:
    store = await served(1, 2)
    async with store.transaction() as records:
        version = await records.add_version(
            ModelVersion(LATE, stage=Stage.STAGING, registered_at=AT, check_problems=())
        )
        release = await records.add_release(Release(LATE, version.number, created_at=AT))
        await RolloutStart(CLOCK).start(records, ReleaseName.parse(release.name), None, "go", "ann")
    assert 1 == await roll_back(store, to=1)
    async with store.reading() as records:
        assert await records.active_rollout(LATE) is None


async def test_a_rollback_between_releases_of_one_version_has_event_and_entry() -> None:
    store = await served(1)
    async with store.transaction() as records:
        first = await records.newest_release_of(LATE, 1)
        second = await records.add_release(Release(LATE, 1, created_at=AT))
        assert first is not None
        rollout = await RolloutStart(CLOCK).start(
            records, ReleaseName.parse(second.name), None, "lower threshold", "ann"
        )
        name = RolloutName.parse(rollout.name)
        while await records.active_rollout(LATE) is not None:
            await LIFECYCLE.skip(records, name, loaded_by_a_gateway(rollout), "known", "ann")
        assert second.number == (await records.routing(LATE)).champion
    before = len(store.events)
    assert first.number == await roll_back(store)
    events = [event for event, _ in store.events[before:]]
    assert [StageChanged(LATE, 1, Stage.PRODUCTION, Stage.PRODUCTION, "ann", "bad", first.number)] == events
    async with store.reading() as records:
        entries = [e for e in await records.audit(LATE, 1 << 30, 99) if e.action == "ROLLBACK"]
    assert [(f"{LATE}/versions/1", "PRODUCTION", "PRODUCTION", "bad")] == [
        (e.subject, e.from_state, e.to_state, e.reason) for e in entries
    ]


def _challenger(routing: object) -> tuple[object, object]:
    return getattr(routing, "challenger", ...), getattr(routing, "challenger_percent", ...)
