"""When the lease of a run expires."""

from __future__ import annotations

from datetime import timedelta

import pytest

from flywheel_common.clock import ManualClock
from flywheel_common.ids import SequentialIds
from flywheel_trainer.fakes.runs import MemoryRuns
from flywheel_trainer.fakes.tracking import MemoryTracking
from flywheel_trainer.runs.lease import LeaseExpiry, has_expired
from flywheel_trainer.runs.run import Run, RunName, RunState, RunUpdate
from flywheel_trainer.runs.use_cases import Runs
from tests.support.builders.trainer import AT, EXPERIMENT

RUN = Run(RunName("p", "new"), "late", lease_seconds=60)


@pytest.mark.parametrize(
    ("heartbeat", "not_before", "now", "expired"),
    [(0, 0, 60, False), (0, 0, 61, True), (30, 0, 61, False), (0, 30, 61, False), (0, 30, 91, True)],
)
def test_a_lease_counts_from_the_heartbeat_or_the_start_of_the_process(
    heartbeat: int, not_before: int, now: int, expired: bool
) -> None:
    times = [AT + timedelta(seconds=seconds) for seconds in (heartbeat, now, not_before)]
    assert has_expired(times[0], 60.0, times[1], times[2]) is expired


@pytest.fixture
async def store() -> MemoryRuns:
    store = MemoryRuns(MemoryTracking())
    await store.create_experiment(EXPERIMENT, "", b"", AT)
    return store


async def test_only_a_run_without_heartbeats_is_lost(store: MemoryRuns) -> None:
    clock = ManualClock(AT)
    runs, expiry = Runs(store, SequentialIds("n"), clock), LeaseExpiry(store, clock)
    silent = (await runs.create_run(RUN, "p", "", b"")).name
    alive = (await runs.create_run(RUN, "p", "", b"")).name
    clock.advance(50)
    await runs.update(alive, RunUpdate())
    assert await expiry.expire() == []
    clock.advance(15)
    assert await expiry.expire() == [str(silent)]
    lost = await runs.get(silent)
    assert (lost.state, lost.ended_at) == (RunState.LOST, clock.now())
    assert (await runs.get(alive)).state is RunState.RUNNING


async def test_no_run_is_lost_because_the_service_was_down(store: MemoryRuns) -> None:
    clock = ManualClock(AT)
    await Runs(store, SequentialIds("n"), clock).create_run(RUN, "p", "", b"")
    clock.advance(600)
    restarted = LeaseExpiry(store, clock)
    assert await restarted.expire() == []
    clock.advance(61)
    assert len(await restarted.expire()) == 1
