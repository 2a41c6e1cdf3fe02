"""The audit has the values of a policy before and after each change."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, replace
from typing import Any

import pytest

from flywheel_common.clock import ManualClock
from flywheel_registry.fakes.store import MemoryStore
from flywheel_registry.models.catalog import ModelCatalog
from flywheel_registry.models.model import Model
from flywheel_registry.policies.gate_policy import (
    ExperimentRequirement,
    ExperimentRule,
    GatePolicy,
    MetricThreshold,
)
from flywheel_registry.policies.rollout_policy import RolloutPolicy, StepOverride
from tests.support.builders.rollouts import AT, LATE

CHANGED = {
    "gate_policy": GatePolicy(
        offline=(MetricThreshold("auc; loss → better", min=0.5, max_delta=0.25),),
        min_evaluation_rows=100,
        min_approvals=2,
        experiment=ExperimentRule(ExperimentRequirement.SHIP, f"{LATE}/experiments/price"),
    ),
    "rollout_policy": RolloutPolicy(
        canary_percents=(50.0, 100.0),
        shadow_percent=25.0,
        shadow_min_labelled=7,
        shadow_max_log_loss_delta=0.25,
        min_bake_seconds=60.0,
        canary_min_predictions=9,
        canary_max_log_loss_delta=0.125,
        max_error_rate=0.5,
        max_p99_ms=75.0,
        max_score_shift=0.75,
        max_step_seconds=7200.0,
        alpha=0.25,
        min_wall_bake_seconds=30.0,
        load_timeout_seconds=90.0,
        steps=(StepOverride(50.0, min_samples=3),),
    ),
}
DEFAULTS = {"gate_policy": GatePolicy(), "rollout_policy": RolloutPolicy()}
OTHERWISE = {"until_verdict": RolloutPolicy(canary_percents=(50.0,), until_verdict=True)}
"""Fields that the policy above cannot change because of its other fields."""


async def reasons(*updates: dict[str, Any]) -> list[str]:
    """The reasons in the audit of a model with default policies, after these updates."""
    store, catalog = MemoryStore(), ModelCatalog(ManualClock(AT), max_artifact_bytes=1)
    async with store.transaction() as records:
        await catalog.create_model(records, Model(LATE), "ann")
    for update in updates:
        async with store.transaction() as records:
            await catalog.update_model(records, replace(Model(LATE), **update), list(update), "", "bob")
    async with store.reading() as records:
        entries = await records.audit(LATE, 1 << 30, 99)
    assert {("bob", LATE)} == {(e.actor, e.subject) for e in entries if e.action == "UPDATE"}
    return [e.reason for e in reversed(entries) if e.action == "UPDATE"]


def change(before: Any, after: Any, field: str) -> str:
    old, new = (json.dumps(asdict(policy)[field], sort_keys=True) for policy in (before, after))
    assert old != new, "the test changes the field"
    return f"{field}: {old} → {new}"


@pytest.mark.parametrize(
    ("policy", "field"), [(name, field.name) for name, policy in DEFAULTS.items() for field in fields(policy)]
)
async def test_each_changed_field_has_its_values_before_and_after(policy: str, field: str) -> None:
    before, after = DEFAULTS[policy], OTHERWISE.get(field, CHANGED[policy])
    there, back = await reasons({policy: after}, {policy: before})
    assert there.startswith(f"{policy}: ")
    assert change(before, after, field) in there
    assert change(after, before, field) in back


async def test_an_update_of_both_policies_and_other_fields_names_all_of_them() -> None:
    first, again = await reasons({"owner": "ann", **CHANGED}, dict(CHANGED))
    for policy, after in CHANGED.items():
        values = [
            f.name for f in fields(after) if getattr(after, f.name) != getattr(DEFAULTS[policy], f.name)
        ]
        assert "; ".join(change(DEFAULTS[policy], after, name) for name in values) in first
    assert first.startswith("owner; gate_policy: ")
    assert "gate_policy: unchanged; rollout_policy: unchanged" == again
