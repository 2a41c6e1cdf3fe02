"""Contract tests for models, versions, releases, evidence, audit and events, in memory and on PostgreSQL."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from flywheel_common.postgres.transactions import Store
from flywheel_common.signature import InputSpec, OutputKind, OutputSpec, Signature, TensorSpec
from flywheel_common.tensors import Tensor
from flywheel_registry.audit.chain import AuditEntry, AuditHead, first_break
from flywheel_registry.events.lifecycle import StageChanged
from flywheel_registry.evidence.evidence import Evidence
from flywheel_registry.models.alias import Alias
from flywheel_registry.models.errors import (
    ConcurrentArtifactChange,
    ConcurrentChampionChange,
    ConcurrentStageChange,
)
from flywheel_registry.models.model import Model
from flywheel_registry.models.search import MetricBounds, Order, VersionQuery
from flywheel_registry.models.version import Artifact, FeatureUse, GoldenRows, ModelVersion
from flywheel_registry.policies.gate_policy import (
    ExperimentRequirement,
    ExperimentRule,
    GatePolicy,
    MetricThreshold,
)
from flywheel_registry.policies.rollout_policy import RolloutPolicy
from flywheel_registry.releases.release import FeaturePolicy, Isotonic, Platt, Release, Temperature
from flywheel_registry.releases.serving_policy import Placement, RealTimeRule, ServingCost, ServingPolicy
from flywheel_registry.rollouts.ports import RolloutRecords
from flywheel_registry.serving.routing import Routing
from flywheel_registry.stages.transitions import Stage
from tests.support.builders.registry import CREATED_AT, MODEL, OTHER_MODEL, add_model, in_transaction

SHA = "ab" * 32
VERSION = ModelVersion(
    MODEL,
    training_run="projects/p/runs/r",
    framework="pytorch",
    metrics={"auc": 0.75, "rows": 1000.0},
    feature_set="projects/p/featureSets/f/versions/1",
    training_dataset="projects/p/trainingSets/t",
    signature=Signature(
        inputs=(
            InputSpec("v__a", 4),
            InputSpec("v__b", 5, ("x", "y"), tensor="WORDS"),
            InputSpec("v__c", 24, (), "V", 3),
        ),
        tensors=(TensorSpec("INPUT", 3, (1,)), TensorSpec("WORDS", 2, ()), TensorSpec("V", 3, (3, 1))),
        output=OutputSpec(OutputKind.MULTICLASS, "P", class_names=("low", "mid", "high")),
    ),
    artifacts=(Artifact("model.onnx", 10, SHA), Artifact("weights.pt", 0, "cd" * 32)),
    golden_rows=GoldenRows(
        (Tensor("INPUT", 3, (1, 1), b"\0\0\x80?"), Tensor("WORDS", 2, (1,), b"\1" + bytes(7))),
        Tensor("P", 3, (1, 3), bytes(12)),
        1e-4,
    ),
    tags={"team": "a"},
    description="ünïcode",
    registered_at=CREATED_AT,
    registered_by="ann",
)
ENTRY = AuditEntry(
    MODEL, 0, CREATED_AT, "ann", "PROMOTE", f"{MODEL}/versions/1", "NONE", "STAGING", "gate passed", ""
)


async def test_models_read_back_and_names_are_unique(store: Store[RolloutRecords]) -> None:
    model = Model(
        MODEL,
        "why",
        "ann",
        {"a": "b"},
        GatePolicy(
            (MetricThreshold("auc", min=0.6),), 100, 2, ExperimentRule(ExperimentRequirement.SHIP, "e")
        ),
        RolloutPolicy(alpha=0.1),
        created_at=CREATED_AT,
    )
    async with store.transaction() as records:
        assert await records.add_model(model)
        assert not await records.add_model(replace(model, owner="bob"))
        assert await records.lock(MODEL)
        assert not await records.lock(OTHER_MODEL)
    async with store.reading() as records:
        assert model == await records.model(MODEL)
        assert await records.model(OTHER_MODEL) is None
    async with store.transaction() as records:
        await records.change_model(replace(model, owner="bob", tags={}))
    async with store.reading() as records:
        assert replace(model, owner="bob", tags={}, revision=2) == await records.model(MODEL)


async def test_models_are_listed_by_name_and_tags_within_a_project(store: Store[RolloutRecords]) -> None:
    async with store.transaction() as records:
        for i, name in enumerate(["c", "a", "b"]):
            tags = {"n": str(i % 2), "all": "yes"}
            await records.add_model(Model(f"projects/p/models/{name}", tags=tags, created_at=CREATED_AT))
        await records.add_model(Model("projects/q/models/a", created_at=CREATED_AT))
    async with store.reading() as records:

        async def names(after: str, limit: int, **tags: str) -> list[str]:
            return [m.name[-1] for m in await records.models("p", after, tags, limit)]

        assert ["a", "b", "c"] == await names("", 10)
        assert ["b"] == await names("projects/p/models/a", 1)
        assert ["b", "c"] == await names("", 10, n="0", all="yes")
        assert [] == await names("", 10, n="2")


async def test_a_transaction_commits_completely_or_not_at_all(observed: Any) -> None:
    await add_model(observed.store, template=VERSION)

    async def change(records: RolloutRecords) -> None:
        assert await records.lock(MODEL)
        version = await records.version(MODEL, 1)
        assert version is not None
        await records.move_version(version, Stage.STAGING, CREATED_AT, "ann")
        await records.add_version(VERSION)
        await records.add_audit(ENTRY)
        await records.emit(StageChanged(MODEL, 1, Stage.NONE, Stage.STAGING, "ann", "why"), CREATED_AT)
        await records.set_routing(MODEL, Routing(1, champion=1))

    async def fail(records: RolloutRecords) -> None:
        await change(records)
        raise RuntimeError("fails here")

    with pytest.raises(RuntimeError, match="fails here"):
        await in_transaction(observed.store, fail)
    async with observed.store.reading() as records:
        assert [Stage.NONE] == [v.stage for v in await records.versions(MODEL, 99, None, {}, 9)]
        assert ([], Routing()) == (await records.audit(MODEL, 99, 9), await records.routing(MODEL))
    assert [] == await observed.emitted()
    await in_transaction(observed.store, change)
    async with observed.store.reading() as records:
        found = await records.versions(MODEL, 99, None, {}, 9)
        assert [(2, Stage.NONE), (1, Stage.STAGING)] == [(v.number, v.stage) for v in found]
        model = await records.model(MODEL)
        assert model is not None
        assert (1, 1) == (model.production_release, model.production_version)
    assert [("StageChanged", "why")] == await observed.emitted()


async def test_a_model_lock_excludes_others_until_the_transaction_ends(store: Store[RolloutRecords]) -> None:
    await add_model(store, template=VERSION)
    seen: list[str] = []

    async def work(name: str) -> None:
        async with store.transaction() as records:
            await records.lock(MODEL)
            seen.append(f"{name} in")
            await asyncio.sleep(0.05)
            seen.append(f"{name} out")

    await asyncio.gather(*(work(n) for n in "abc"))
    assert all(first[0] == second[0] for first, second in zip(seen[::2], seen[1::2], strict=True))


async def test_concurrent_and_failed_versions_leave_no_gaps_in_numbers(store: Store[RolloutRecords]) -> None:
    await add_model(store, versions=0, template=VERSION)

    async def add(fail: bool) -> int:
        async with store.transaction() as records:
            added = await records.add_version(VERSION)
            if fail:
                raise RuntimeError
            return added.number

    numbers = await asyncio.gather(*(add(i % 3 == 0) for i in range(12)), return_exceptions=True)
    assert list(range(1, 9)) == sorted(n for n in numbers if isinstance(n, int))
    async with store.reading() as records:
        assert replace(VERSION, number=8) == await records.version(MODEL, 8)
        assert await records.version(MODEL, 9) is None


async def test_reads_see_data_committed_after_they_began(store: Store[RolloutRecords]) -> None:
    async with store.reading() as records:
        assert await records.model(MODEL) is None
        await add_model(store, template=VERSION)
        assert await records.model(MODEL) is not None
    async with store.transaction() as unfinished, store.reading() as records:
        await unfinished.add_model(Model(OTHER_MODEL, created_at=CREATED_AT))
        assert await records.model(OTHER_MODEL) is None


async def test_feature_uses_cover_training_and_releases(
    store: Store[RolloutRecords],
) -> None:
    sets = [f"projects/p/featureSets/{name}/versions/1" for name in ("a", "b")]
    await add_model(store, OTHER_MODEL, versions=0, template=VERSION)
    await add_model(store, versions=0, template=VERSION)
    async with store.transaction() as records:
        for model, trained in ((OTHER_MODEL, sets[0]), (MODEL, sets[0]), (MODEL, "projects/q/featureSets/a")):
            await records.add_version(replace(VERSION, model=model, feature_set=trained))
        for released in (sets[1], sets[0]):
            await records.add_release(Release(MODEL, 1, feature_set=released, created_at=CREATED_AT))
        second = await records.version(MODEL, 2)
        assert second is not None
        await records.move_version(second, Stage.STAGING, CREATED_AT, "ann")
    uses = [
        FeatureUse(MODEL, 1, Stage.NONE, sets[0]),
        FeatureUse(MODEL, 1, Stage.NONE, sets[1]),
        FeatureUse(OTHER_MODEL, 1, Stage.NONE, sets[0]),
    ]
    async with store.reading() as records:
        assert uses == await records.feature_uses("projects/p/featureSets/", ("", 0, ""), 9)
        assert uses[1:2] == await records.feature_uses("projects/p/featureSets/", (MODEL, 1, sets[0]), 1)
        moved = [FeatureUse(MODEL, 2, Stage.STAGING, "projects/q/featureSets/a")]
        assert moved == await records.feature_uses("projects/q/featureSets/", ("", 0, ""), 9)


async def test_versions_are_listed_newest_first_by_stage_and_tags(store: Store[RolloutRecords]) -> None:
    await add_model(store, versions=0, template=VERSION)
    async with store.transaction() as records:
        for i in range(4):
            version = await records.add_version(replace(VERSION, tags={"odd": str(i % 2)}))
            if i > 1:
                await records.move_version(version, Stage.STAGING, CREATED_AT, "ann")
    async with store.reading() as records:

        async def numbers(before: int, stage: Stage | None, limit: int, **tags: str) -> list[int]:
            return [v.number for v in await records.versions(MODEL, before, stage, tags, limit)]

        assert [4, 3, 2, 1] == await numbers(99, None, 9)
        assert [2] == await numbers(3, None, 1)
        assert [4, 3] == await numbers(99, Stage.STAGING, 9)
        assert [3] == await numbers(99, Stage.STAGING, 9, odd="0")


async def test_a_stage_change_needs_the_stage_that_was_read(store: Store[RolloutRecords]) -> None:
    await add_model(store, template=VERSION)
    async with store.reading() as records:
        seen = await records.version(MODEL, 1)
    assert seen is not None
    await in_transaction(store, lambda r: r.move_version(seen, Stage.STAGING, CREATED_AT, "ann"))
    with pytest.raises(ConcurrentStageChange):
        await in_transaction(store, lambda r: r.move_version(seen, Stage.REJECTED, CREATED_AT, "bob"))
    async with store.reading() as records:
        moved = await records.version(MODEL, 1)
    assert moved is not None
    assert (Stage.STAGING, CREATED_AT, "ann") == (moved.stage, moved.promoted_at, moved.promoted_by)


async def test_the_store_allows_one_champion_per_model(store: Store[RolloutRecords]) -> None:
    await add_model(store, versions=2, template=VERSION)
    async with store.reading() as records:
        first, second = [await records.version(MODEL, n) for n in (1, 2)]
        assert await records.champion(MODEL) is None
    assert first is not None and second is not None
    await in_transaction(store, lambda r: r.move_version(first, Stage.PRODUCTION, CREATED_AT, "ann"))
    with pytest.raises(ConcurrentChampionChange):
        await in_transaction(store, lambda r: r.move_version(second, Stage.PRODUCTION, CREATED_AT, "bob"))

    async def swap(records: RolloutRecords) -> None:
        await records.move_version(replace(first, stage=Stage.PRODUCTION), Stage.ARCHIVED, CREATED_AT, "bob")
        await records.move_version(second, Stage.PRODUCTION, CREATED_AT, "bob")

    await in_transaction(store, swap)
    async with store.reading() as records:
        champion = await records.champion(MODEL)
    assert champion is not None and 2 == champion.number


async def test_production_versions_of_several_models_are_read_together(
    store: Store[RolloutRecords],
) -> None:
    await add_model(store, versions=3, template=VERSION)
    await add_model(store, OTHER_MODEL, versions=1, template=VERSION)

    async def read() -> dict[str, ModelVersion | None]:
        async with store.reading() as records:
            return await records.production_versions([MODEL, OTHER_MODEL, f"{MODEL}x"])

    assert {MODEL: None, OTHER_MODEL: None} == await read()
    async with store.transaction() as records:
        version = await records.version(MODEL, 2)
        assert version is not None
        await records.move_version(version, Stage.PRODUCTION, CREATED_AT, "ann")
        await records.mark_stored(MODEL, 2, "model.onnx", SHA)
    async with store.reading() as records:
        (listed,) = await records.versions(MODEL, 99, Stage.PRODUCTION, {}, 9)
    assert (2, True) == (listed.number, listed.artifacts[0].stored)
    assert {MODEL: listed, OTHER_MODEL: None} == await read()
    await in_transaction(store, lambda r: r.delete_model(OTHER_MODEL, CREATED_AT))
    assert {MODEL: listed} == await read()


async def test_artifacts_are_marked_stored_under_the_declared_digest(store: Store[RolloutRecords]) -> None:
    await add_model(store, template=VERSION)
    with pytest.raises(ConcurrentArtifactChange):
        await in_transaction(store, lambda r: r.mark_stored(MODEL, 1, "model.onnx", "ef" * 32))
    async with store.reading() as records:
        assert not await records.digest_stored(SHA)
    for _ in range(2):
        await in_transaction(store, lambda r: r.mark_stored(MODEL, 1, "model.onnx", SHA))
    async with store.reading() as records:
        assert await records.digest_stored(SHA)
        version = await records.version(MODEL, 1)
    assert version is not None
    assert [True, False] == [a.stored for a in version.artifacts]


async def test_releases_read_back_newest_first(store: Store[RolloutRecords]) -> None:
    await add_model(store, versions=0, template=VERSION)
    release = Release(
        MODEL,
        1,
        feature_set="f",
        threshold=0.25,
        default_score=0.5,
        has_fallback=True,
        segment_keys=("origin",),
        segment_thresholds={"origin=JFK": 0.125},
        default_values=(0.5, 0.25, 0.25),
        feature_policies=(
            FeaturePolicy("a__text", missing=3),
            FeaturePolicy("a__vector", 2, 3, [0.5, -1.0]),
            FeaturePolicy("a__flag", stale=2, default=True),
        ),
        cached_max_age_seconds=60.0,
        serving=ServingPolicy(
            Placement(2, 3, 64, 0.25),
            (RealTimeRule("amount", 100.0), RealTimeRule("country", values=("DE", "FR"))),
            ServingCost("EUR", 0.001, 2.5),
        ),
        created_at=CREATED_AT,
        created_by="ann",
    )
    kinds = [None, Platt(1.5, -0.5), Isotonic((0.0, 1.0), (0.25, 0.75)), Temperature(1.5)]
    async with store.transaction() as records:
        await records.add_version(VERSION)
        await records.add_version(VERSION)
        for i, calibration in enumerate(kinds):
            await records.add_release(replace(release, calibration=calibration, version=1 + i % 2))
    async with store.reading() as records:
        expected = [
            replace(release, number=4 - i, calibration=kinds[3 - i], version=2 - i % 2) for i in range(4)
        ]
        assert expected == await records.releases(MODEL, 99, 9)
        assert [2] == [r.number for r in await records.releases(MODEL, 3, 1)]
        assert expected[:2] == [await records.newest_release_of(MODEL, v) for v in (2, 1)]
        assert await records.newest_release_of(MODEL, 3) is None
        assert (expected[2], None) == (await records.release(MODEL, 2), await records.release(MODEL, 5))


async def test_a_check_is_recorded_and_replaced(store: Store[RolloutRecords]) -> None:
    await add_model(store, template=VERSION)

    async def recorded(problems: list[str]) -> ModelVersion | None:
        async with store.transaction() as records:
            version = await records.version(MODEL, 1)
            assert version is not None
            await records.record_check(version, problems)
        async with store.reading() as records:
            return await records.version(MODEL, 1)

    async with store.transaction() as records:
        added = await records.add_version(replace(VERSION, check_problems=("c",)))
        assert added == await records.version(MODEL, 2)
    expected = replace(VERSION, number=1)
    assert replace(expected, check_problems=("a", "b")) == await recorded(["a", "b"])
    assert replace(expected, check_problems=()) == await recorded([])


async def test_a_version_without_dependents_is_hidden_and_restored(store: Store[RolloutRecords]) -> None:
    await add_model(store, versions=1, template=VERSION)
    async with store.transaction() as records:
        released = await records.version(MODEL, 1)
        lone = await records.add_version(VERSION)
        named = await records.add_version(VERSION)
        await records.put_alias(Alias(MODEL, "best", 3, False, CREATED_AT, "ann"))
    async with store.transaction() as records:
        assert released is not None
        assert [True, False, True] == [await records.has_dependents(v) for v in (released, lone, named)]
        await records.delete_version(lone, CREATED_AT)
    async with store.transaction() as records:
        assert await records.version(MODEL, 2) is None
        assert [3, 1] == [v.number for v in await records.versions(MODEL, 99, None, {}, 9)]
        assert 4 == (await records.add_version(VERSION)).number
        assert [True, False] == [await records.restore_version(MODEL, 2) for _ in range(2)]
        assert lone == await records.version(MODEL, 2)


async def test_a_model_is_hidden_and_restored_with_what_went_with_it(store: Store[RolloutRecords]) -> None:
    await add_model(store, versions=3, template=VERSION)
    async with store.transaction() as records:
        early = await records.version(MODEL, 1)
        release = await records.release(MODEL, 2)
        assert early is not None
        assert release is not None
        await records.delete_version(early, CREATED_AT)
        await records.delete_release(release, CREATED_AT)
    async with store.transaction() as records:
        await records.delete_model(MODEL, CREATED_AT + timedelta(hours=1))
    async with store.transaction() as records:
        assert (None, False) == (await records.model(MODEL), await records.lock(MODEL))
        assert not await records.versions(MODEL, 99, None, {}, 9)
        assert not await records.releases(MODEL, 99, 9)
        assert not await records.models("p", "", {}, 9)
        assert not await records.add_model(Model(MODEL, created_at=CREATED_AT))
        assert [True, False] == [await records.restore_model(MODEL) for _ in range(2)]
        assert [3, 2] == [v.number for v in await records.versions(MODEL, 99, None, {}, 9)]
        assert [3, 1] == [r.number for r in await records.releases(MODEL, 99, 9)]
        assert [True, False] == [await records.restore_release(MODEL, 2) for _ in range(2)]
        assert [2] == [r.number for r in await records.releases_of(MODEL, 2, 9)]


async def test_versions_are_found_by_metric_tag_stage_and_source(store: Store[RolloutRecords]) -> None:
    aucs = {MODEL: (0.5, 0.9, 0.7), OTHER_MODEL: (0.8, 0.7)}
    async with store.transaction() as records:
        for model, values in aucs.items():
            await records.add_model(Model(model, created_at=CREATED_AT))
            for i, auc in enumerate(values):
                await records.add_version(
                    replace(
                        VERSION,
                        model=model,
                        metrics={"auc": auc, **({"loss": 1.0} if i else {})},
                        tags={"n": str(i), "team": "a"},
                        parent_version=f"{MODEL}/versions/1" if i == 2 else "",
                        registered_at=CREATED_AT + timedelta(minutes=i),
                    )
                )
    late, other = MODEL, OTHER_MODEL

    async def found(**conditions: Any) -> list[tuple[str, int]]:
        query = VersionQuery("p", **conditions)
        async with store.reading() as records:
            whole = await records.search_versions(query, 99)
            paged: list[ModelVersion] = []
            while page := await records.search_versions(query, 2):
                paged += page
                query = replace(query, after=query.position(page[-1]))
        assert whole == paged
        assert all(v.golden_rows.output is None for v in whole)
        return [(v.model, v.number) for v in whole]

    assert [(late, 3), (other, 2), (late, 2), (other, 1), (late, 1)] == await found()
    assert [(late, 1), (late, 3), (other, 2), (other, 1), (late, 2)] == await found(order_by="auc")
    assert [(late, 2), (other, 1), (other, 2), (late, 3), (late, 1)] == await found(
        order_by="auc", descending=True
    )
    assert [(late, 2), (late, 3), (other, 2)] == await found(order_by="loss")
    assert [(late, 1), (other, 1), (late, 2), (other, 2), (late, 3)] == await found(order=Order.OLDEST)
    by_name = [(late, 1), (late, 2), (late, 3), (other, 1), (other, 2)]
    assert by_name == await found(order=Order.NAME)
    assert by_name[::-1] == await found(order=Order.NAME, descending=True)
    assert [(late, 2), (late, 3)] == await found(
        order=Order.NAME, models=[late], metrics=(MetricBounds("auc", 0.6),)
    )
    assert [(other, 2), (other, 1)] == await found(models=[other])
    bounds = (MetricBounds("auc", 0.7, 0.8), MetricBounds("loss", high=1.0))
    assert [(late, 3), (other, 2)] == await found(metrics=bounds)
    assert [(late, 3), (other, 2)] == await found(metrics=bounds, order_by="auc")
    assert [(other, 1), (late, 2)] == await found(metrics=(MetricBounds("auc", 0.75),), order_by="auc")
    assert [(late, 1)] == await found(metrics=(MetricBounds("auc", high=0.6),), order_by="auc")
    between = (MetricBounds("auc", high=0.8), MetricBounds("auc", 0.75), MetricBounds("auc", 0.1))
    assert [(other, 1)] == await found(metrics=between, order_by="auc", descending=True)
    assert [] == await found(
        metrics=(MetricBounds("auc", 0.8), MetricBounds("auc", high=0.7)), order_by="auc"
    )
    assert [(late, 2)] == await found(metrics=(MetricBounds("auc", 0.85),), order_by="loss")
    assert [(late, 3)] == await found(tags={"n": "2", "team": "a"})
    assert [] == await found(stages=[Stage.STAGING])
    assert 5 == len(await found(stages=[Stage.STAGING, Stage.NONE]))
    assert [(late, 3)] == await found(sources=[f"{MODEL}/versions/1", "projects/p/runs/r"])
    async with store.reading() as records:
        assert [] == await records.search_versions(VersionQuery("q"), 9)


async def test_aliases_and_tags_read_back(store: Store[RolloutRecords]) -> None:
    await add_model(store, versions=2, template=VERSION)
    first = Alias(MODEL, "best", 1, False, CREATED_AT, "ann")
    moved = replace(first, version=2, protected=True)
    async with store.transaction() as records:
        await records.put_alias(first)
        await records.put_alias(replace(first, alias="eu"))
        await records.put_alias(moved)
        version = await records.version(MODEL, 1)
        assert version is not None
        await records.change_tags(version, {"k": "v"})
    async with store.transaction() as records:
        assert moved == await records.alias(MODEL, "best")
        assert ["best", "eu"] == [a.alias for a in await records.aliases(MODEL, "", 9)]
        assert ["eu"] == [a.alias for a in await records.aliases(MODEL, "best", 9)]
        await records.delete_alias(moved)
        assert await records.alias(MODEL, "best") is None
        tagged = await records.version(MODEL, 1)
        assert tagged is not None
        assert {"k": "v"} == tagged.tags


async def test_evidence_reads_back_and_the_newest_of_a_kind_is_found(store: Store[RolloutRecords]) -> None:
    await add_model(store, template=VERSION)
    evidence = Evidence(
        MODEL, "OFFLINE", 1, {"auc": 0.5}, ("auc 0.5, at least 0.6",), False, created_at=CREATED_AT
    )
    async with store.transaction() as records:
        for kind in ("OFFLINE", "SHADOW", "OFFLINE"):
            await records.add_evidence(replace(evidence, kind=kind))
    async with store.reading() as records:
        assert replace(evidence, number=1) == await records.evidence(MODEL, 1)
        assert await records.evidence(MODEL, 4) is None
        assert replace(evidence, number=3) == await records.newest_evidence_of(MODEL, 1, "OFFLINE")
        assert await records.newest_evidence_of(MODEL, 1, "CANARY") is None


async def test_each_model_has_one_audit_chain(store: Store[RolloutRecords]) -> None:
    await add_model(store, template=VERSION)
    await add_model(store, OTHER_MODEL, template=VERSION)

    async def add(model: str) -> None:
        async with store.transaction() as records:
            await records.lock(model)
            await records.add_audit(replace(ENTRY, model=model, sequence=77, hash="forged"))

    await asyncio.gather(*(add(m) for m in (MODEL, OTHER_MODEL) * 5))
    async with store.reading() as records:
        for model in (MODEL, OTHER_MODEL):
            entries = await records.audit(model, 99, 99)
            assert list(range(5, 0, -1)) == [e.sequence for e in entries]
            assert first_break(model, entries[::-1]) is None
        assert [3, 2] == [e.sequence for e in await records.audit(MODEL, 4, 2)]


async def test_events_carry_the_head_that_their_transaction_leaves(observed: Any) -> None:
    await add_model(observed.store, template=VERSION)

    async def change(records: RolloutRecords) -> None:
        await records.lock(MODEL)
        await records.add_audit(replace(ENTRY, model=MODEL))
        await records.emit(StageChanged(MODEL, 1, Stage.NONE, Stage.STAGING, "ann", "one"), CREATED_AT)
        await records.add_audit(replace(ENTRY, model=MODEL))

    await in_transaction(observed.store, change)
    await in_transaction(observed.store, change)
    async with observed.store.reading() as records:
        entries = await records.audit(MODEL, 99, 99)
    expected = [AuditHead(e.sequence, e.hash) for e in entries[::-1]]
    assert [expected[1], expected[3]] == await observed.heads()


async def test_events_of_committed_changes_keep_the_order_of_the_audit(
    observed: Any,
) -> None:
    await add_model(observed.store, template=VERSION)
    await add_model(observed.store, OTHER_MODEL, template=VERSION)

    async def change(model: str, fail: bool) -> None:
        async with observed.store.transaction() as records:
            await records.lock(model)
            line = await records.add_audit(replace(ENTRY, model=model))
            reason = f"{model} {line.sequence}" + (" rolled back" if fail else "")
            await records.emit(StageChanged(model, 1, Stage.NONE, Stage.STAGING, "ann", reason), CREATED_AT)
            if fail:
                raise RuntimeError

    await asyncio.gather(
        *(change(m, i % 3 == 0) for i in range(12) for m in (MODEL, OTHER_MODEL)), return_exceptions=True
    )
    emitted = [reason for _, reason in await observed.emitted()]
    for model in (MODEL, OTHER_MODEL):
        assert [f"{model} {n}" for n in range(1, 9)] == [r for r in emitted if r.startswith(f"{model} ")]
