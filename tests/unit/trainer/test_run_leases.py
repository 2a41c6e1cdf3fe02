"""When the lease of a run expires."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from flywheel_common.clock import ManualClock
from flywheel_common.ids import SequentialIds
from flywheel_common.postgres.errors import PostgresUnavailable
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


async def passes(expiry: LeaseExpiry, clock: ManualClock, seconds: int) -> list[str]:
    """The runs that end while this time passes, with a check every 5 s."""
    ended = []
    for _ in range(0, seconds, 5):
        clock.advance(5)
        ended += await expiry.expire()
    return ended


async def test_only_a_run_without_heartbeats_is_lost(store: MemoryRuns) -> None:
    clock = ManualClock(AT)
    runs, expiry = Runs(store, SequentialIds("n"), clock), LeaseExpiry(store, clock)
    silent = (await runs.create_run(RUN, "p", "", b"")).name
    alive = (await runs.create_run(RUN, "p", "", b"")).name
    assert await passes(expiry, clock, 50) == []
    await runs.update(alive, RunUpdate())
    assert await passes(expiry, clock, 15) == [str(silent)]
    lost = await runs.get(silent)
    assert (lost.state, lost.ended_at) == (RunState.LOST, clock.now())
    assert (await runs.get(alive)).state is RunState.RUNNING


async def test_no_run_is_lost_because_the_service_was_down(store: MemoryRuns) -> None:
    clock = ManualClock(AT)
    await Runs(store, SequentialIds("n"), clock).create_run(RUN, "p", "", b"")
    clock.advance(600)
    restarted = LeaseExpiry(store, clock)
    assert await restarted.expire() == []
    assert len(await passes(restarted, clock, 65)) == 1


class StoreWithOutage(MemoryRuns):
    """A store that does not answer while `down` is set."""

    down = False

    async def expire(self, now: datetime, not_before: datetime) -> list[str]:
        if self.down:
            raise PostgresUnavailable("The database does not answer now: try again.")
        return await super().expire(now, not_before)


async def test_no_run_is_lost_because_the_store_was_down_for_longer_than_its_lease() -> None:
    store = StoreWithOutage(MemoryTracking())
    await store.create_experiment(EXPERIMENT, "", b"", AT)
    clock = ManualClock(AT)
    await Runs(store, SequentialIds("n"), clock).create_run(RUN, "p", "", b"")
    expiry = LeaseExpiry(store, clock)
    store.down = True
    for _ in range(24):
        clock.advance(5)
        with pytest.raises(PostgresUnavailable):
            await expiry.expire()
    store.down = False
    assert await passes(expiry, clock, 60) == []
    assert len(await passes(expiry, clock, 10)) == 1


async def test_no_run_is_lost_because_the_process_was_stopped(store: MemoryRuns) -> None:
    """SIGSTOP and SIGCONT: nothing fails, but no heartbeat could arrive."""
    clock = ManualClock(AT)
    await Runs(store, SequentialIds("n"), clock).create_run(RUN, "p", "", b"")
    expiry = LeaseExpiry(store, clock)
    assert await passes(expiry, clock, 10) == []
    clock.advance(180)
    assert await passes(expiry, clock, 60) == []
    assert len(await passes(expiry, clock, 10)) == 1
