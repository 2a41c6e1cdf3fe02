"""One law for who knows how variants compare: in memory, and the monitor's RPC."""

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
from flywheel_registry import convert_rollouts
from flywheel_registry.memory_serving import MemoryMonitor
from flywheel_registry.ports import Monitor
from flywheel_registry.resources import Rollout
from flywheel_registry.rollout import Comparison, Progress, RolloutState, Variant
from flywheel_registry.store.monitor import MonitorPeer
from flywheel_registry.testing import START, comparison, serving_monitor
from tests.support.ports import free_port

SHADOW, CANARY = 1, 2
ROLLOUT = Rollout("projects/p/models/late", challenger=2, challenger_version=2, champion=1, number=7)
IN_CANARY = ROLLOUT.at(Progress(RolloutState.CANARY, 5.0, 1))


@dataclass
class Asked:
    monitor: Monitor
    knows: Callable[[Rollout, Any], None]
    """From now on it answers so about the step of this rollout."""


@pytest.fixture(params=["memory", "grpc"])
async def asked(request: pytest.FixtureRequest) -> AsyncIterator[Asked]:
    if request.param == "memory":
        memory = MemoryMonitor()

        def note(rollout: Rollout, answer: Any) -> None:
            memory.answers[rollout.name] = convert_rollouts.comparison(answer)

        yield Asked(memory, note)
        return
    async with serving_monitor() as fake, channel(fake.address, client_name="tests") as peer:

        def tell(rollout: Rollout, answer: Any) -> None:
            fake.answers[SHADOW if rollout.progress.state is RolloutState.SHADOW else CANARY] = answer

        yield Asked(MonitorPeer(peer, 5.0), tell)


async def test_evidence_is_what_the_monitor_counted(asked: Asked) -> None:
    asked.knows(
        ROLLOUT, comparison(labelled=300, predictions=400, delta=-0.5, half=0.25, days=2.0, error_rate=0.125)
    )
    assert Comparison(
        champion=Variant(400, 300, 0.0, 0.0, 0.0, 0.1, None),
        challenger=Variant(400, 300, 0.125, 0.0, 0.0, 0.1, None),
        first_event=START,
        last_event=START + timedelta(days=2),
        labelled=300,
        log_loss_delta=-0.5,
        log_loss_delta_upper=-0.25,
        log_loss_delta_lower=-0.75,
        score_shift=0.0,
    ) == await asked.monitor.compare(ROLLOUT)


async def test_bounds_without_labels_are_infinite_and_still_evidence(asked: Asked) -> None:
    asked.knows(ROLLOUT, comparison(labelled=0, predictions=9))
    found = await asked.monitor.compare(ROLLOUT)
    assert found is not None
    assert (math.inf, 9) == (found.log_loss_delta_upper, found.challenger.predictions)


async def test_the_question_is_about_the_step_and_since_its_beginning() -> None:
    async with serving_monitor() as fake, channel(fake.address, client_name="tests") as peer:
        monitor = MonitorPeer(peer, 5.0)
        await monitor.compare(ROLLOUT)
        await monitor.compare(replace(IN_CANARY, step_started_at=START))
        shadow, canary = fake.asked
        assert (SHADOW, False) == (shadow.mode, shadow.HasField("start_time"))
        assert (CANARY, START.timestamp()) == (canary.mode, canary.start_time.ToSeconds())
        for question in (shadow, canary):
            assert ROLLOUT.name == question.rollout
            assert ("projects/p/models/late/releases/1", "projects/p/models/late/releases/2") == (
                question.champion_release, question.challenger_release,
            )  # fmt: skip


async def test_a_monitor_that_cannot_be_asked_is_no_evidence_and_no_error() -> None:
    assert await MemoryMonitor().compare(ROLLOUT) is None
    async with channel(f"127.0.0.1:{free_port()}", client_name="tests", health_check=False) as nobody:
        assert await MonitorPeer(nobody, 0.2).compare(ROLLOUT) is None
    async with serving_monitor() as fake, channel(fake.address, client_name="tests") as peer:
        monitor = MonitorPeer(peer, 0.5)
        fake.answers[SHADOW] = comparison(delta=math.nan)
        assert await monitor.compare(ROLLOUT) is None
        for trouble in (_refusing, _silent):
            fake.CompareVariants = trouble  # type: ignore[method-assign]
            assert await monitor.compare(ROLLOUT) is None


async def _refusing(request: Any, context: Any) -> Any:
    await context.abort(grpc.StatusCode.NOT_FOUND, "never heard of it")


async def _silent(request: Any, context: Any) -> Any:
    await asyncio.sleep(60)
