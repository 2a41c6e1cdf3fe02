"""One law for the registry's store, in memory and in PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from flywheel_common.errors import Aborted
from flywheel_registry.audit import AuditEntry, first_break
from flywheel_registry.policy import GatePolicy, MetricThreshold, RolloutPolicy
from flywheel_registry.ports import Records, Store
from flywheel_registry.resources import (
    Artifact,
    Evidence,
    FeatureUse,
    GoldenRows,
    Isotonic,
    Model,
    ModelVersion,
    Platt,
    Release,
    SignatureInput,
    StageChanged,
)
from flywheel_registry.serving import Routing
from flywheel_registry.stages import Stage

AT = datetime(2026, 1, 1, 12, 0, 0, 123456, tzinfo=UTC)
LATE, OTHER = "projects/p/models/late", "projects/p/models/other"
SHA = "ab" * 32
VERSION = ModelVersion(
    LATE,
    training_run="projects/p/runs/r",
    framework="pytorch",
    metrics={"auc": 0.75, "rows": 1000.0},
    feature_set="projects/p/featureSets/f/versions/1",
    training_dataset="projects/p/trainingSets/t",
    signature=(SignatureInput("v__a", 4), SignatureInput("v__b", 5, ("x", "y"))),
    artifacts=(Artifact("model.onnx", 10, SHA), Artifact("weights.pt", 0, "cd" * 32)),
    golden_rows=GoldenRows(1, b"\0\0\x80?", b"\0\0\0?", 1e-4),
    tags={"team": "a"},
    description="ünïcode",
    registered_at=AT,
    registered_by="ann",
)
ENTRY = AuditEntry(LATE, 0, AT, "ann", "PROMOTE", f"{LATE}/versions/1", "NONE", "STAGING", "gate passed", "")


async def with_model(store: Store, name: str = LATE, versions: int = 1) -> None:
    """A model whose versions have a release each."""
    async with store.transaction() as records:
        assert await records.add_model(Model(name, created_at=AT))
        for _ in range(versions):
            version = await records.add_version(replace(VERSION, model=name))
            await records.add_release(Release(name, version.number, created_at=AT, created_by="ann"))


async def in_transaction(store: Store, act: Callable[[Records], Awaitable[Any]]) -> Any:
    async with store.transaction() as records:
        return await act(records)


async def test_models_read_back_and_a_name_is_taken_once(store: Store) -> None:
    model = Model(
        LATE, "why", "ann", {"a": "b"}, GatePolicy((MetricThreshold("auc", min=0.6),), 100), RolloutPolicy(alpha=0.1),
        created_at=AT,
    )  # fmt: skip
    async with store.transaction() as records:
        assert await records.add_model(model)
        assert not await records.add_model(replace(model, owner="bob"))
        assert await records.lock(LATE)
        assert not await records.lock(OTHER)
    async with store.reading() as records:
        assert model == await records.model(LATE)
        assert await records.model(OTHER) is None
    async with store.transaction() as records:
        await records.change_model(replace(model, owner="bob", tags={}))
    async with store.reading() as records:
        assert replace(model, owner="bob", tags={}, revision=2) == await records.model(LATE)


async def test_models_are_listed_by_name_and_tags_within_a_project(store: Store) -> None:
    async with store.transaction() as records:
        for i, name in enumerate(["c", "a", "b"]):
            tags = {"n": str(i % 2), "all": "yes"}
            await records.add_model(Model(f"projects/p/models/{name}", tags=tags, created_at=AT))
        await records.add_model(Model("projects/q/models/a", created_at=AT))
    async with store.reading() as records:

        async def names(after: str, limit: int, **tags: str) -> list[str]:
            return [m.name[-1] for m in await records.models("p", after, tags, limit)]

        assert ["a", "b", "c"] == await names("", 10)
        assert ["b"] == await names("projects/p/models/a", 1)
        assert ["b", "c"] == await names("", 10, n="0", all="yes")
        assert [] == await names("", 10, n="2")


async def test_a_transaction_commits_whole_or_not_at_all(backed: Any) -> None:
    await with_model(backed.store)

    async def change(records: Records) -> None:
        assert await records.lock(LATE)
        version = await records.version(LATE, 1)
        assert version is not None
        await records.move_version(version, Stage.STAGING, AT, "ann")
        await records.add_version(VERSION)
        await records.add_audit(ENTRY)
        await records.emit(StageChanged(LATE, 1, Stage.NONE, Stage.STAGING, "ann", "why"), AT)
        await records.set_routing(LATE, Routing(1, champion=1))

    async def fail(records: Records) -> None:
        await change(records)
        raise RuntimeError("dies here")

    with pytest.raises(RuntimeError, match="dies here"):
        await in_transaction(backed.store, fail)
    async with backed.store.reading() as records:
        assert [Stage.NONE] == [v.stage for v in await records.versions(LATE, 99, None, {}, 9)]
        assert ([], Routing()) == (await records.audit(LATE, 99, 9), await records.routing(LATE))
    assert [] == await backed.emitted()
    await in_transaction(backed.store, change)
    async with backed.store.reading() as records:
        found = await records.versions(LATE, 99, None, {}, 9)
        assert [(2, Stage.NONE), (1, Stage.STAGING)] == [(v.number, v.stage) for v in found]
        model = await records.model(LATE)
        assert model is not None
        assert (1, 1) == (model.production_release, model.production_version)
    assert [("StageChanged", "why")] == await backed.emitted()


async def test_whoever_locks_a_model_keeps_the_others_out_until_it_ends(store: Store) -> None:
    await with_model(store)
    seen: list[str] = []

    async def work(name: str) -> None:
        async with store.transaction() as records:
            await records.lock(LATE)
            seen.append(f"{name} in")
            await asyncio.sleep(0.05)
            seen.append(f"{name} out")

    await asyncio.gather(*(work(n) for n in "abc"))
    assert all(first[0] == second[0] for first, second in zip(seen[::2], seen[1::2], strict=True))


async def test_versions_read_back_and_are_numbered_without_gaps_whatever_races_or_fails(store: Store) -> None:
    await with_model(store, versions=0)

    async def add(fail: bool) -> int:
        async with store.transaction() as records:
            added = await records.add_version(VERSION)
            if fail:
                raise RuntimeError
            return added.number

    numbers = await asyncio.gather(*(add(i % 3 == 0) for i in range(12)), return_exceptions=True)
    assert list(range(1, 9)) == sorted(n for n in numbers if isinstance(n, int))
    async with store.reading() as records:
        assert replace(VERSION, number=8) == await records.version(LATE, 8)
        assert await records.version(LATE, 9) is None


async def test_a_read_sees_what_was_committed_since_it_began(store: Store) -> None:
    async with store.reading() as records:
        assert await records.model(LATE) is None
        await with_model(store)
        assert await records.model(LATE) is not None
    async with store.transaction() as unfinished, store.reading() as records:
        await unfinished.add_model(Model(OTHER, created_at=AT))
        assert await records.model(OTHER) is None


async def test_feature_sets_are_used_by_those_trained_on_them_and_those_released_with_them(
    store: Store,
) -> None:
    sets = [f"projects/p/featureSets/{name}/versions/1" for name in ("a", "b")]
    await with_model(store, OTHER, versions=0)
    await with_model(store, versions=0)
    async with store.transaction() as records:
        for model, trained in ((OTHER, sets[0]), (LATE, sets[0]), (LATE, "projects/q/featureSets/a")):
            await records.add_version(replace(VERSION, model=model, feature_set=trained))
        for released in (sets[1], sets[0]):
            await records.add_release(Release(LATE, 1, feature_set=released, created_at=AT))
        second = await records.version(LATE, 2)
        assert second is not None
        await records.move_version(second, Stage.STAGING, AT, "ann")
    uses = [
        FeatureUse(LATE, 1, Stage.NONE, sets[0]), FeatureUse(LATE, 1, Stage.NONE, sets[1]), FeatureUse(OTHER, 1, Stage.NONE, sets[0]),
    ]  # fmt: skip
    async with store.reading() as records:
        assert uses == await records.feature_uses("projects/p/featureSets/", ("", 0, ""), 9)
        assert uses[1:2] == await records.feature_uses("projects/p/featureSets/", (LATE, 1, sets[0]), 1)
        moved = [FeatureUse(LATE, 2, Stage.STAGING, "projects/q/featureSets/a")]
        assert moved == await records.feature_uses("projects/q/featureSets/", ("", 0, ""), 9)


async def test_versions_are_listed_newest_first_by_stage_and_tags(store: Store) -> None:
    await with_model(store, versions=0)
    async with store.transaction() as records:
        for i in range(4):
            version = await records.add_version(replace(VERSION, tags={"odd": str(i % 2)}))
            if i > 1:
                await records.move_version(version, Stage.STAGING, AT, "ann")
    async with store.reading() as records:

        async def numbers(before: int, stage: Stage | None, limit: int, **tags: str) -> list[int]:
            return [v.number for v in await records.versions(LATE, before, stage, tags, limit)]

        assert [4, 3, 2, 1] == await numbers(99, None, 9)
        assert [2] == await numbers(3, None, 1)
        assert [4, 3] == await numbers(99, Stage.STAGING, 9)
        assert [3] == await numbers(99, Stage.STAGING, 9, odd="0")


async def test_a_stage_moves_only_from_where_it_was_seen(store: Store) -> None:
    await with_model(store)
    async with store.reading() as records:
        seen = await records.version(LATE, 1)
    assert seen is not None
    await in_transaction(store, lambda r: r.move_version(seen, Stage.STAGING, AT, "ann"))
    with pytest.raises(Aborted) as stale:
        await in_transaction(store, lambda r: r.move_version(seen, Stage.REJECTED, AT, "bob"))
    assert "STAGE_CHANGED" == stale.value.reason
    async with store.reading() as records:
        moved = await records.version(LATE, 1)
    assert moved is not None
    assert (Stage.STAGING, AT, "ann") == (moved.stage, moved.promoted_at, moved.promoted_by)


async def test_a_model_has_one_champion_by_itself(store: Store) -> None:
    await with_model(store, versions=2)
    async with store.reading() as records:
        first, second = [await records.version(LATE, n) for n in (1, 2)]
        assert await records.champion(LATE) is None
    assert first is not None and second is not None
    await in_transaction(store, lambda r: r.move_version(first, Stage.PRODUCTION, AT, "ann"))
    with pytest.raises(Aborted) as refused:
        await in_transaction(store, lambda r: r.move_version(second, Stage.PRODUCTION, AT, "bob"))
    assert "CHAMPION_CHANGED" == refused.value.reason

    async def swap(records: Records) -> None:
        await records.move_version(replace(first, stage=Stage.PRODUCTION), Stage.ARCHIVED, AT, "bob")
        await records.move_version(second, Stage.PRODUCTION, AT, "bob")

    await in_transaction(store, swap)
    async with store.reading() as records:
        champion = await records.champion(LATE)
    assert champion is not None and 2 == champion.number


async def test_an_artifact_is_stored_under_the_digest_it_was_declared_with(store: Store) -> None:
    await with_model(store)
    with pytest.raises(Aborted) as changed:
        await in_transaction(store, lambda r: r.mark_stored(LATE, 1, "model.onnx", "ef" * 32))
    assert "ARTIFACT_CHANGED" == changed.value.reason
    async with store.reading() as records:
        assert not await records.digest_stored(SHA)
    for _ in range(2):
        await in_transaction(store, lambda r: r.mark_stored(LATE, 1, "model.onnx", SHA))
    async with store.reading() as records:
        assert await records.digest_stored(SHA)
        version = await records.version(LATE, 1)
    assert version is not None
    assert [True, False] == [a.stored for a in version.artifacts]


async def test_releases_read_back_newest_first(store: Store) -> None:
    await with_model(store, versions=0)
    release = Release(LATE, 1, feature_set="f", threshold=0.25, default_score=0.5, has_fallback=True, segment_keys=("origin",),
                      cached_max_age_seconds=60.0, created_at=AT, created_by="ann")  # fmt: skip
    kinds = [None, Platt(1.5, -0.5), Isotonic((0.0, 1.0), (0.25, 0.75))]
    async with store.transaction() as records:
        await records.add_version(VERSION)
        await records.add_version(VERSION)
        for i, calibration in enumerate(kinds):
            await records.add_release(replace(release, calibration=calibration, version=1 + i % 2))
    async with store.reading() as records:
        expected = [
            replace(release, number=3 - i, calibration=kinds[2 - i], version=1 + i % 2) for i in range(3)
        ]
        assert expected == await records.releases(LATE, 99, 9)
        assert [2] == [r.number for r in await records.releases(LATE, 3, 1)]
        assert expected[:2] == [await records.newest_release_of(LATE, v) for v in (1, 2)]
        assert await records.newest_release_of(LATE, 3) is None
        assert (expected[1], None) == (await records.release(LATE, 2), await records.release(LATE, 4))


async def test_evidence_reads_back_and_the_newest_of_a_kind_is_found(store: Store) -> None:
    await with_model(store)
    proof = Evidence(LATE, "OFFLINE", 1, {"auc": 0.5}, ("auc 0.5, at least 0.6",), False, created_at=AT)
    async with store.transaction() as records:
        for kind in ("OFFLINE", "SHADOW", "OFFLINE"):
            await records.add_evidence(replace(proof, kind=kind))
    async with store.reading() as records:
        assert replace(proof, number=1) == await records.evidence(LATE, 1)
        assert await records.evidence(LATE, 4) is None
        assert replace(proof, number=3) == await records.newest_evidence_of(LATE, 1, "OFFLINE")
        assert await records.newest_evidence_of(LATE, 1, "CANARY") is None


async def test_the_audit_is_one_chain_per_model(store: Store) -> None:
    await with_model(store)
    await with_model(store, OTHER)

    async def add(model: str) -> None:
        async with store.transaction() as records:
            await records.lock(model)
            await records.add_audit(replace(ENTRY, model=model, sequence=77, hash="forged"))

    await asyncio.gather(*(add(m) for m in (LATE, OTHER) * 5))
    async with store.reading() as records:
        for model in (LATE, OTHER):
            entries = await records.audit(model, 99, 99)
            assert list(range(5, 0, -1)) == [e.sequence for e in entries]
            assert first_break(model, entries[::-1]) is None
        assert [3, 2] == [e.sequence for e in await records.audit(LATE, 4, 2)]


async def test_a_models_events_leave_in_the_order_of_its_audit_and_only_those_of_what_was_kept(
    backed: Any,
) -> None:
    await with_model(backed.store)
    await with_model(backed.store, OTHER)

    async def change(model: str, fail: bool) -> None:
        async with backed.store.transaction() as records:
            await records.lock(model)
            line = await records.add_audit(replace(ENTRY, model=model))
            said = f"{model} {line.sequence}"
            if fail:
                said = f"{said} undone"
            await records.emit(StageChanged(model, 1, Stage.NONE, Stage.STAGING, "ann", said), AT)
            if fail:
                raise RuntimeError

    await asyncio.gather(
        *(change(m, i % 3 == 0) for i in range(12) for m in (LATE, OTHER)), return_exceptions=True
    )
    emitted = [reason for _, reason in await backed.emitted()]
    for model in (LATE, OTHER):
        assert [f"{model} {n}" for n in range(1, 9)] == [r for r in emitted if r.startswith(f"{model} ")]
