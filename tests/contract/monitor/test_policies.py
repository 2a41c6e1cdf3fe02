"""One law for the policies of models, in memory, in PostgreSQL and through gRPC."""

from __future__ import annotations

from typing import Any

import pytest

from flywheel_monitor.policy import MonitorPolicy

STRICT = MonitorPolicy(
    window_us=3_600_000_000, lateness_us=0, min_predictions=7, min_labels=8, psi_warning=0.05, psi_alert=0.3, fdr=0.05,
    k_of=1, m_windows=4, score_shift=1.5, auc_drop=0.02, log_loss_ratio=1.1, data_quality_rate=0.4, label_shift=0.01,
)  # fmt: skip


async def test_a_policy_replaces_the_one_before_and_belongs_to_its_model(monitor: Any) -> None:
    other = "projects/q/models/late"
    assert await monitor.asks.policy(monitor.model) is None
    await monitor.asks.set_policy(monitor.model, MonitorPolicy(min_predictions=100))
    await monitor.asks.set_policy(monitor.model, STRICT)
    assert STRICT == await monitor.asks.policy(monitor.model)
    assert await monitor.asks.policy(other) is None
    await monitor.asks.set_policy(other, MonitorPolicy())
    assert (STRICT, MonitorPolicy()) == (
        await monitor.asks.policy(monitor.model),
        await monitor.asks.policy(other),
    )


async def test_a_model_that_a_batch_named_has_the_default_policy(monitor: Any) -> None:
    await monitor.predicted(monitor.batch(["a"]))
    assert MonitorPolicy() == await monitor.asks.policy(monitor.model)
    labelled = "projects/p/models/labelled"
    await monitor.labelled(monitor.outcomes(["x"], [1.0], model=labelled))
    assert MonitorPolicy() == await monitor.asks.policy(labelled)
    await monitor.asks.set_policy(monitor.model, STRICT)
    await monitor.predicted(monitor.batch(["b"]))
    assert STRICT == await monitor.asks.policy(monitor.model)


async def test_a_policy_that_is_not_committed_was_never_set(monitor: Any) -> None:
    with pytest.raises(ZeroDivisionError):
        async with monitor.store.transaction() as records:
            await records.set_policy(monitor.model, STRICT)
            assert STRICT == await records.policy(monitor.model)
            raise ZeroDivisionError
    assert await monitor.asks.policy(monitor.model) is None


async def test_who_reads_sees_what_was_committed_meanwhile(monitor: Any) -> None:
    async with monitor.store.reading() as records:
        assert await records.policy(monitor.model) is None
        await monitor.asks.set_policy(monitor.model, STRICT)
        assert STRICT == await records.policy(monitor.model)


@pytest.mark.without_grpc("only the watch asks for the policies of all models")
async def test_every_known_model_has_its_policy_in_the_list(monitor: Any) -> None:
    await monitor.asks.set_policy("projects/q/models/b", STRICT)
    await monitor.predicted(monitor.batch(["a"]))
    async with monitor.store.reading() as records:
        listed = await records.policies()
    assert {"projects/q/models/b": STRICT, monitor.model: MonitorPolicy()} == {n: p for _, n, p in listed}
    assert 2 == len({number for number, _, _ in listed})
