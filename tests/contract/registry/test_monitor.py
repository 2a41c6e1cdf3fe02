"""Contract tests for the monitor as a source of evidence, in memory and by gRPC."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import grpc
import pytest

from flywheel_common.grpc.channel import channel
from flywheel_registry.evidence.experiment_verdict import ExperimentVerdict
from flywheel_registry.fakes.monitor import MemoryMonitor
from flywheel_registry.policies.rollout_policy import RolloutPolicy
from flywheel_registry.rollouts.comparison import Comparison, Variant
from flywheel_registry.rollouts.ports import Monitor
from flywheel_registry.rollouts.rollout import Rollout
from flywheel_registry.rollouts.state_machine import Progress, RolloutState
from flywheel_registry.rollouts.step_verdict import LimitVerdict, StepMetric, StepVerdict
from flywheel_registry.store.grpc.monitor import GrpcMonitor
from tests.support.builders.step_evidence import FIRST_EVENT, Counted, compared
from tests.support.peers.registry import CANARY, SHADOW, comparison, serving_monitor
from tests.support.ports import free_port

ROLLOUT = replace(
    Rollout("projects/p/models/late", challenger=2, challenger_version=2, champion=1, number=7),
    progress=Progress(RolloutState.SHADOW, 0.0, 1),
    policy=RolloutPolicy(
        shadow_min_labelled=80, shadow_max_log_loss_delta=0.01, max_error_rate=0.02, max_p99_ms=50.0
    ),
    generation=3,
)
IN_CANARY = replace(ROLLOUT, progress=Progress(RolloutState.CANARY, 5.0, 2), generation=4)


@dataclass
class Prepared:
    monitor: Monitor
    set_answer: Callable[[Counted], None]
    """Sets what the monitor has counted of the shadow step of ROLLOUT."""


@pytest.fixture(params=["memory", "grpc"])
async def prepared(request: pytest.FixtureRequest) -> AsyncIterator[Prepared]:
    if request.param == "memory":
        memory = MemoryMonitor()

        def in_memory(counted: Counted) -> None:
            memory.comparisons[ROLLOUT.name] = compared(counted, ROLLOUT)

        yield Prepared(memory, in_memory)
        return
    async with serving_monitor() as fake, channel(fake.address, client_name="tests") as opened:

        def in_peer(counted: Counted) -> None:
            fake.answers[SHADOW] = counted

        yield Prepared(GrpcMonitor(opened, 5.0), in_peer)


async def test_a_comparison_has_the_statistics_of_the_monitor(prepared: Prepared) -> None:
    prepared.set_answer(
        comparison(
            labelled=300,
            predictions=400,
            champion_predictions=500,
            delta=-0.5,
            error=0.1,
            days=2.0,
            error_rate=0.125,
            latency_ms=20.0,
        )
    )
    found = await prepared.monitor.compare(ROLLOUT)
    assert found is not None
    verdicts = found.verdicts
    p99 = verdicts[StepMetric.P99_MS].value
    assert 20.0 <= p99 <= 22.0
    assert (
        Comparison(
            champion=Variant(500, 300, 0.0, 0.0, 0.0, 0.1, None),
            challenger=Variant(400, 300, 0.125, p99, 0.0, 0.1, None),
            covered_from=FIRST_EVENT,
            covered_until=FIRST_EVENT + timedelta(days=2),
            labelled=300,
            log_loss_delta=-0.5,
            score_shift=0.0,
            verdicts=verdicts,
        )
        == found
    )
    assert [StepMetric.LOSS_DELTA, StepMetric.ERROR_RATE, StepMetric.P99_MS] == list(verdicts)
    loss, errors = verdicts[StepMetric.LOSS_DELTA], verdicts[StepMetric.ERROR_RATE]
    # Howard et al. 2021, equation 14, with 300 rows and rho = 80 / 8: 2.889 and 3.344 standard errors.
    assert (LimitVerdict.WITHIN, 0.01, -0.5, 300) == (loss.verdict, loss.limit, loss.value, loss.rows)
    assert (loss.lower, loss.upper) == (pytest.approx(-0.8344, abs=1e-4), pytest.approx(-0.2111, abs=1e-4))
    assert StepVerdict(LimitVerdict.BREACHED, 0.02, 0.125, 400) == errors
    assert {"log_loss_delta_lower", "challenger.latency_p99_ms_lower"} < set(found.values())


@pytest.mark.parametrize("verdict", ["CONTINUE", "SHIP", "ROLL_BACK"])
async def test_a_comparison_has_the_verdict_of_its_experiment(prepared: Prepared, verdict: str) -> None:
    experiment = ExperimentVerdict("projects/p/models/late/experiments/price", verdict, "buys +3 %")
    prepared.set_answer(comparison(experiment=experiment))
    found = await prepared.monitor.compare(ROLLOUT)
    assert found is not None and experiment == found.experiment
    prepared.set_answer(comparison())
    without = await prepared.monitor.compare(ROLLOUT)
    assert without is not None and without.experiment is None


async def test_a_comparison_without_labels_has_no_bounds(prepared: Prepared) -> None:
    prepared.set_answer(comparison(labelled=0, predictions=9))
    found = await prepared.monitor.compare(ROLLOUT)
    assert found is not None
    loss = found.verdicts[StepMetric.LOSS_DELTA]
    assert (LimitVerdict.UNDECIDED, None, None) == (loss.verdict, loss.lower, loss.upper)
    assert 9 == found.challenger.predictions


async def test_the_request_names_the_step_by_its_generation() -> None:
    async with serving_monitor() as fake, channel(fake.address, client_name="tests") as opened:
        monitor = GrpcMonitor(opened, 5.0)
        await monitor.compare(ROLLOUT)
        await monitor.compare(IN_CANARY)
        shadow, canary = fake.requests
        assert (SHADOW, 3) == (shadow.mode, shadow.generation)
        assert (CANARY, 4) == (canary.mode, canary.generation)
        for request in (shadow, canary):
            assert ROLLOUT.name == request.rollout
            assert "projects/p/models/late/releases/1" == request.champion_release
            assert "projects/p/models/late/releases/2" == request.challenger_release


async def test_a_comparison_of_another_step_is_no_evidence() -> None:
    async with serving_monitor() as fake, channel(fake.address, client_name="tests") as opened:
        monitor = GrpcMonitor(opened, 5.0)
        fake.answers[SHADOW] = comparison()
        assert await monitor.compare(ROLLOUT) is not None
        assert await monitor.compare(replace(ROLLOUT, generation=0)) is None, "of all steps"
        fake.generation = 2
        assert await monitor.compare(ROLLOUT) is None


async def test_an_unavailable_monitor_is_no_evidence_and_no_error() -> None:
    assert await MemoryMonitor().compare(ROLLOUT) is None
    async with channel(f"127.0.0.1:{free_port()}", client_name="tests", health_check=False) as nowhere:
        assert await GrpcMonitor(nowhere, 0.2).compare(ROLLOUT) is None
    async with serving_monitor() as fake, channel(fake.address, client_name="tests") as opened:
        monitor = GrpcMonitor(opened, 0.5)
        fake.answers[SHADOW] = comparison(delta=math.nan)
        assert await monitor.compare(ROLLOUT) is None
        fake.answers[SHADOW] = comparison()
        assert await monitor.compare(ROLLOUT) is not None
        for fake.before in (_not_found, _hanging):
            assert await monitor.compare(ROLLOUT) is None


async def test_slow_comparisons_of_a_busy_model_get_more_time() -> None:
    async with serving_monitor() as fake, channel(fake.address, client_name="tests") as opened:

        async def slow(request: Any, context: Any) -> None:
            await asyncio.sleep(0.6)

        fake.before = slow
        fake.answers[SHADOW] = comparison()
        monitor = GrpcMonitor(opened, 0.1)
        found = [await monitor.compare(ROLLOUT) for _ in range(5)]
        assert found[0] is None
        assert found[-1] is not None
        impatient = GrpcMonitor(opened, 0.1, 0.2)
        assert [None] * 4 == [await impatient.compare(ROLLOUT) for _ in range(4)]


async def _not_found(request: Any, context: Any) -> Any:
    await context.abort(grpc.StatusCode.NOT_FOUND, "unknown rollout")


async def _hanging(request: Any, context: Any) -> Any:
    await asyncio.sleep(60)
