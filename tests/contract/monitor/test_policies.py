"""Contract tests of policy stores."""

from __future__ import annotations

import pytest

from flywheel_monitor.models.feature_rule import Direction, FeatureRule
from flywheel_monitor.models.policy import MonitorPolicy
from tests.support.builders.monitor import (
    MODEL,
    STRICT_POLICY,
    outcomes,
    predictions,
)
from tests.support.servers.monitor import LocalMonitor


async def policy_of(monitor: LocalMonitor, model: str = MODEL) -> MonitorPolicy | None:
    async with monitor.store.reading() as records:
        return await records.policy(model)


async def set_policy(monitor: LocalMonitor, model: str, policy: MonitorPolicy) -> None:
    async with monitor.store.transaction() as records:
        await records.set_policy(model, policy)


async def test_a_policy_replaces_that_of_its_model_only(monitor: LocalMonitor) -> None:
    other = "projects/q/models/late"
    assert await policy_of(monitor, MODEL) is None
    await set_policy(monitor, MODEL, MonitorPolicy(min_predictions=100))
    await set_policy(monitor, MODEL, STRICT_POLICY)
    assert STRICT_POLICY == await policy_of(monitor, MODEL)
    assert await policy_of(monitor, other) is None
    await set_policy(monitor, other, MonitorPolicy())
    assert (STRICT_POLICY, MonitorPolicy()) == (
        await policy_of(monitor, MODEL),
        await policy_of(monitor, other),
    )


async def test_the_rules_of_features_are_stored_with_the_policy(monitor: LocalMonitor) -> None:
    rules = (
        FeatureRule("view__up", 0.3, 0.4, Direction.UP),
        FeatureRule("view__silent", silenced=True),
        FeatureRule("view__später", silenced_until_us=1_700_000_000_000_000),
    )
    await set_policy(monitor, MODEL, MonitorPolicy(feature_rules=rules))
    found = await policy_of(monitor)
    assert found is not None
    assert rules == found.feature_rules
    await set_policy(monitor, MODEL, MonitorPolicy())
    assert MonitorPolicy() == await policy_of(monitor)


async def test_a_model_named_by_a_batch_has_the_default_policy(monitor: LocalMonitor) -> None:
    await monitor.predicted(predictions(["a"]))
    assert MonitorPolicy() == await policy_of(monitor, MODEL)
    labelled = "projects/p/models/labelled"
    await monitor.labelled(outcomes(["x"], [1.0], model=labelled))
    assert MonitorPolicy() == await policy_of(monitor, labelled)
    await set_policy(monitor, MODEL, STRICT_POLICY)
    await monitor.predicted(predictions(["b"]))
    assert STRICT_POLICY == await policy_of(monitor, MODEL)


async def test_a_rolled_back_policy_is_not_set(monitor: LocalMonitor) -> None:
    with pytest.raises(ZeroDivisionError):
        async with monitor.store.transaction() as records:
            await records.set_policy(MODEL, STRICT_POLICY)
            assert STRICT_POLICY == await records.policy(MODEL)
            raise ZeroDivisionError
    assert await policy_of(monitor, MODEL) is None


async def test_an_open_reader_sees_later_commits(monitor: LocalMonitor) -> None:
    async with monitor.store.reading() as records:
        assert await records.policy(MODEL) is None
        await set_policy(monitor, MODEL, STRICT_POLICY)
        assert STRICT_POLICY == await records.policy(MODEL)


async def test_the_list_has_the_policy_of_every_model(monitor: LocalMonitor) -> None:
    await set_policy(monitor, "projects/q/models/b", STRICT_POLICY)
    await monitor.predicted(predictions(["a"]))
    async with monitor.store.reading() as records:
        listed = await records.policies()
    assert {"projects/q/models/b": STRICT_POLICY, MODEL: MonitorPolicy()} == {n: p for _, n, p in listed}
    assert 2 == len({number for number, _, _ in listed})
