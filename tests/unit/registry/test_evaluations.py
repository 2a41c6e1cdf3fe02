"""Metrics that an evaluation measured: the gates read the newest ones, and they outrank all others."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from flywheel_common.clock import ManualClock
from flywheel_registry.audit.chain import first_break
from flywheel_registry.evidence.evidence import Evidence
from flywheel_registry.fakes.store import MemoryStore
from flywheel_registry.gates.path import newest_offline_proof
from flywheel_registry.models.errors import InvalidMetric, UnknownModelVersion
from flywheel_registry.models.lookups import find_version
from flywheel_registry.models.model import Model
from flywheel_registry.models.names import VersionName
from flywheel_registry.models.version import ModelVersion
from flywheel_registry.policies.gate_policy import GatePolicy, MetricThreshold
from flywheel_registry.promotion.evaluation import EvaluationLog
from flywheel_registry.promotion.promotion import PromotionResult, Promotions
from flywheel_registry.releases.release import Release
from flywheel_registry.stages.transitions import Stage

LATE = "projects/p/models/late"
AT = datetime(2026, 1, 1, tzinfo=UTC)
CLOCK = ManualClock(AT)
GATE = GatePolicy((MetricThreshold("auc", min=0.6, min_delta=0.0),))


def version(number: int, model: str = LATE) -> VersionName:
    return VersionName.parse(f"{model}/versions/{number}")


async def store_with(*metrics: dict[str, float]) -> MemoryStore:
    store = MemoryStore()
    async with store.transaction() as records:
        await records.add_model(Model(LATE, gate_policy=GATE, created_at=AT))
        for one in metrics:
            checked = ModelVersion(LATE, metrics=one, registered_at=AT, check_problems=())
            added = await records.add_version(checked)
            await records.add_release(Release(LATE, added.number, created_at=AT))
    return store


async def record(store: MemoryStore, number: int, champion: int | None = None, **values: float) -> Evidence:
    async with store.transaction() as records:
        compared = version(champion) if champion else None
        return await EvaluationLog(CLOCK).record(
            records, version(number), values, compared, ["passed: measured"], "trainer"
        )


async def promote(store: MemoryStore, number: int, **changes: Any) -> PromotionResult:
    wanted: dict[str, Any] = {"override": False, "check_path": lambda path: None, "added": {}, **changes}
    async with store.transaction() as records:
        return await Promotions(CLOCK).promote(
            records, version(number), wanted.pop("to", Stage.STAGING), "because", "ann", **wanted
        )


async def test_a_measured_metric_outranks_what_was_registered_and_sent() -> None:
    store = await store_with({"auc": 0.9})
    measured = await record(store, 1, auc=0.5)
    refused = await promote(store, 1, added={"auc": 0.95})
    assert not refused.passed
    assert refused.evidence.values["auc"] == 0.5
    assert refused.evidence.findings[-2:] == (
        f"passed: metrics of {measured.name}, measured by trainer",
        f"passed: auc: 0.5 as {measured.name} measured it counts, 0.9 was registered",
    )


async def test_the_newest_evaluation_counts() -> None:
    store = await store_with({"auc": 0.9})
    await record(store, 1, auc=0.5)
    await record(store, 1, auc=0.7)
    assert (await promote(store, 1)).evidence.values["auc"] == 0.7


async def test_bounds_of_an_interval_can_be_gated() -> None:
    store = await store_with({"auc": 0.9})
    async with store.transaction() as records:
        model = await records.model(LATE)
        assert model is not None
        policy = GatePolicy((MetricThreshold("auc_low", min=0.6),))
        await records.change_model(replace(model, gate_policy=policy))
    assert not (await promote(store, 1)).passed
    await record(store, 1, auc=0.7, auc_low=0.65)
    assert (await promote(store, 1)).passed


async def test_the_difference_is_taken_on_the_rows_of_the_evaluation() -> None:
    store = await store_with({"auc": 0.7}, {"auc": 0.8, "champion_auc": 0.6})
    await promote(store, 1, to=Stage.PRODUCTION, override=True)
    await record(store, 2, 1, auc=0.72, champion_auc=0.73)
    refused = await promote(store, 2)
    assert not refused.passed
    assert refused.evidence.values["champion.auc"] == 0.73


async def test_a_comparison_with_another_champion_does_not_count() -> None:
    store = await store_with({"auc": 0.7}, {"auc": 0.7}, {"auc": 0.8, "champion_auc": 0.1})
    await promote(store, 1, to=Stage.PRODUCTION, override=True)
    await record(store, 3, 2, auc=0.75, champion_auc=0.99)
    passed = await promote(store, 3)
    assert passed.passed
    assert passed.evidence.values["champion.auc"] == 0.7, "the champion's own metric, not one of other rows"


async def test_proof_of_a_rollout_is_renewed_after_an_evaluation() -> None:
    store = await store_with({"auc": 0.7}, {"auc": 0.8})
    await promote(store, 1, to=Stage.PRODUCTION, override=True)
    await promote(store, 2)
    async with store.transaction() as records:
        found, champion = await find_version(records, version(2)), await find_version(records, version(1))
        before = await newest_offline_proof(records, found, champion, "bob", AT)
    measured = await record(store, 2, 1, auc=0.65, champion_auc=0.7)
    async with store.transaction() as records:
        after = await newest_offline_proof(records, found, champion, "bob", AT)
        assert before.number < measured.number < after.number
        assert (after.passed, after.values["auc"]) == (False, 0.65)


async def test_an_evaluation_is_in_the_audit_chain_and_changes_no_stage() -> None:
    store = await store_with({"auc": 0.9})
    measured = await record(store, 1, auc=0.8)
    async with store.reading() as records:
        entries = await records.audit(LATE, 99, 9)
        assert [(one.action, one.evidence, one.evidence_hash) for one in entries] == [
            ("EVALUATE", measured.name, measured.hash)
        ]
        assert first_break(LATE, entries[::-1]) is None
        assert (await find_version(records, version(1))).stage is Stage.NONE
    assert store.events == []


@pytest.mark.parametrize("values", [{}, {"auc": float("nan")}, {"auc": 0.7, "brier": float("inf")}])
async def test_values_that_are_no_metrics_are_refused(values: dict[str, float]) -> None:
    store = await store_with({"auc": 0.9})
    with pytest.raises(InvalidMetric):
        await record(store, 1, **values)
    async with store.reading() as records:
        assert await records.audit(LATE, 99, 9) == []


async def test_unknown_versions_are_refused() -> None:
    store = await store_with({"auc": 0.9})
    for number, champion in ((2, None), (1, 2)):
        with pytest.raises(UnknownModelVersion):
            await record(store, number, champion, auc=0.7)
    async with store.transaction() as records:
        with pytest.raises(InvalidMetric, match="no version of"):
            await EvaluationLog(CLOCK).record(
                records, version(1), {"auc": 0.7}, version(1, "projects/p/models/other"), [], "trainer"
            )
