"""Promotion and rejection of versions, on the store in memory."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel_common.clock import ManualClock
from flywheel_common.errors import FlywheelError
from flywheel_registry.audit.chain import first_break
from flywheel_registry.events.lifecycle import StageChanged
from flywheel_registry.evidence.evidence import Evidence
from flywheel_registry.fakes.store import MemoryStore
from flywheel_registry.models.model import Model
from flywheel_registry.models.names import VersionName
from flywheel_registry.models.version import ModelVersion
from flywheel_registry.policies.gate_policy import GatePolicy, MetricThreshold
from flywheel_registry.promotion.errors import NoRelease
from flywheel_registry.promotion.promotion import PromotionResult, Promotions
from flywheel_registry.releases.release import Release
from flywheel_registry.stages.errors import IllegalTransition
from flywheel_registry.stages.transitions import LEGAL_TRANSITIONS, Stage

LATE = "projects/p/models/late"
AT = datetime(2026, 1, 1, tzinfo=UTC)
GATE = GatePolicy((MetricThreshold("auc", min=0.6, min_delta=0.0),))


async def store_with_versions(*aucs: float, releases: bool = True) -> MemoryStore:
    store = MemoryStore()
    async with store.transaction() as records:
        await records.add_model(Model(LATE, gate_policy=GATE, created_at=AT))
        for auc in aucs:
            checked = ModelVersion(LATE, metrics={"auc": auc}, registered_at=AT, check_problems=())
            version = await records.add_version(checked)
            if releases:
                await records.add_release(Release(LATE, version.number, created_at=AT))
    return store


async def promote(store: MemoryStore, number: int, to: Stage | None, **changes: Any) -> PromotionResult:
    defaults = {"override": False, "check_path": lambda path: None, "added": {}}
    wanted: dict[str, Any] = {**defaults, **changes}
    async with store.transaction() as records:
        name = VersionName.parse(f"{LATE}/versions/{number}")
        return await Promotions(ManualClock(AT)).promote(records, name, to, "because", "ann", **wanted)


async def stages_of(store: MemoryStore) -> dict[int, Stage]:
    async with store.reading() as records:
        return {v.number: v.stage for v in await records.versions(LATE, 1 << 30, None, {}, 99)}


async def test_promotion_to_production_without_a_rollout_needs_an_override() -> None:
    store = await store_with_versions(0.7)
    with pytest.raises(IllegalTransition, match="StartRollout"):
        await promote(store, 1, Stage.PRODUCTION)
    done = await promote(store, 1, Stage.PRODUCTION, override=True)
    assert (False, Stage.PRODUCTION) == (done.passed, done.version.stage)
    async with store.reading() as records:
        model = await records.model(LATE)
        assert model is not None
        assert (1, 1) == (model.production_release, model.production_version)
        assert "OVERRIDE" in {entry.action for entry in await records.audit(LATE, 99, 9)}
    failed = "FAILED: loaded by the gateways, no passed evidence: StartRollout gathers it"
    assert failed in done.evidence.findings


async def test_a_failed_gate_is_stored_and_keeps_the_stage() -> None:
    store = await store_with_versions(0.5)
    refused = await promote(store, 1, None)
    assert (False, Stage.NONE) == (refused.passed, refused.version.stage)
    async with store.reading() as records:
        (entry,) = await records.audit(LATE, 99, 9)
        assert ("GATE_FAILED", refused.evidence.name) == (entry.action, entry.evidence)
    assert [] == store.events
    worse = await promote(store, 1, None, added={"auc": 0.4})
    assert (False, 0.4) == (worse.passed, worse.evidence.values["auc"])
    assert "auc: 0.4 as ann measured it counts, 0.5 was registered" in worse.evidence.findings[-1]
    overridden = await promote(store, 1, None, override=True)
    assert (False, Stage.STAGING) == (overridden.passed, overridden.version.stage)


async def test_promotion_to_production_needs_a_release() -> None:
    store = await store_with_versions(0.7, releases=False)
    with pytest.raises(NoRelease):
        await promote(store, 1, Stage.PRODUCTION, override=True)
    assert {1: Stage.NONE} == await stages_of(store)


async def test_shadow_evidence_counts_only_for_the_champion_of_today() -> None:
    store = await store_with_versions(0.7, 0.8, 0.9)
    await promote(store, 1, Stage.PRODUCTION, override=True)
    await promote(store, 3, None)

    async def shadow(champion: int) -> None:
        async with store.transaction() as records:
            found = Evidence(
                LATE, "SHADOW", 3, {}, ("passed: shadow",), True, created_at=AT, champion=champion
            )
            await records.add_evidence(found)

    await shadow(1)
    await promote(store, 2, Stage.PRODUCTION, override=True)
    refused = await promote(store, 3, Stage.CANDIDATE)
    assert (False, Stage.STAGING) == (refused.passed, refused.version.stage)
    assert "compared with version 1, the champion is version 2" in refused.evidence.findings[0]
    await shadow(2)
    assert Stage.CANDIDATE is (await promote(store, 3, Stage.CANDIDATE)).version.stage


STEP = st.tuples(st.integers(1, 4), st.sampled_from([None, *Stage, "reject"]), st.booleans())


@settings(max_examples=100, deadline=None)
@given(steps=st.lists(STEP, max_size=14))
def test_routing_stages_and_audit_agree_after_any_promotions(steps: list[Any]) -> None:
    async def run() -> None:
        store = await store_with_versions(0.7, 0.5, 0.8, 0.65)
        promotions = Promotions(ManualClock(AT))
        for number, to, override in steps:
            before = await stages_of(store), len(store.events)
            try:
                if to == "reject":
                    async with store.transaction() as records:
                        name = VersionName.parse(f"{LATE}/versions/{number}")
                        await promotions.reject(records, name, "bad", "bob")
                else:
                    await promote(store, number, to, override=override)
            except FlywheelError:
                assert before == (await stages_of(store), len(store.events)), (
                    "a refused change must not be stored"
                )
            await check(store, before[0])

    async def check(store: MemoryStore, before: dict[int, Stage]) -> None:
        now = await stages_of(store)
        serving = [n for n, stage in now.items() if stage is Stage.PRODUCTION]
        assert len(serving) <= 1
        async with store.reading() as records:
            model = await records.model(LATE)
            assert model is not None
            assert (serving[0] if serving else None) == model.production_version
            spans = await records.spans(LATE)
            assert [s.version for s in spans if s.until is None] == serving
            assert first_break(LATE, (await records.audit(LATE, 1 << 30, 999))[::-1]) is None
        moved = [e for e, _ in store.events if isinstance(e, StageChanged)]
        assert all(e.to_stage in LEGAL_TRANSITIONS[e.from_stage] for e in moved)
        last = {e.version: e.to_stage for e in moved}
        assert {n: last.get(n, Stage.NONE) for n in before} == now

    asyncio.run(run())
