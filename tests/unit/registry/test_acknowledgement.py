"""Which gateways a rollback waits for, and when it is complete."""

from __future__ import annotations

import pytest

from flywheel_common.clock import ManualClock, SystemClock
from flywheel_registry.fakes.gateways import MemoryGateways
from flywheel_registry.rollback.acknowledgement import Acknowledgement, Acknowledgements
from flywheel_registry.serving.gateways import ObservedModel

LATE = "projects/p/models/late"


async def acknowledged(silent_seconds: float, generation: int) -> Acknowledgement:
    """Wait for generation 5, which "live" applies, with "other" silent since it reported `generation`."""
    clock = ManualClock()
    gateways = MemoryGateways(clock)
    await gateways.heartbeat("other", [ObservedModel(LATE, generation)])
    clock.advance(silent_seconds)
    await gateways.heartbeat("live", [ObservedModel(LATE, 5)])
    waiting = Acknowledgements(SystemClock(), gateways)
    return await waiting.wait(LATE, 5, since=SystemClock().monotonic(), timeout_seconds=0.5)


async def test_a_gateway_that_was_cut_off_makes_a_rollback_incomplete() -> None:
    for silent in (2.0, 30.0, 3000.0):
        answer = await acknowledged(silent, generation=4)
        assert not answer.complete
        assert ["other"] == list(answer.unacknowledged)


async def test_a_gateway_that_applied_the_change_and_then_fell_silent_counts() -> None:
    answer = await acknowledged(30.0, generation=5)
    assert answer.complete
    assert [] == list(answer.unacknowledged)


@pytest.mark.parametrize(("silent", "waits"), [(3.0, True), (30.0, False)])
async def test_only_gateways_silent_for_seconds_are_waited_for(silent: float, waits: bool) -> None:
    answer = await acknowledged(silent, generation=4)
    assert (answer.seconds >= 0.5) is waits


async def test_a_gateway_silent_for_more_than_an_hour_is_forgotten() -> None:
    answer = await acknowledged(3601.0, generation=4)
    assert answer.complete
