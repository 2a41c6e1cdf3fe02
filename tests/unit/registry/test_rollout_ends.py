"""Every rollout ends in bounded wall time, and no version is rejected without a crossed quality bound."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise

import pytest

from flywheel_registry.events.lifecycle import RolloutChanged
from flywheel_registry.evidence.experiment_verdict import ExperimentVerdict
from flywheel_registry.fakes.store import MemoryStore
from flywheel_registry.policies.rollout_policy import RolloutPolicy, StepOverride
from flywheel_registry.rollouts.errors import NotAnExperiment
from flywheel_registry.rollouts.rollout import Rollout
from flywheel_registry.rollouts.state_machine import RolloutState
from flywheel_registry.rollouts.ticker import MAX_CONCURRENT, paused, stalled
from flywheel_registry.rollouts.verdict import Decision
from flywheel_registry.stages.transitions import Stage
from tests.support.builders.rollouts import AT, LATE, Simulation
from tests.support.builders.step_evidence import NOTHING, Counted
from tests.support.eventually import eventually

HOUR, DAY = 3600.0, 86_400.0
POLICY = RolloutPolicy(
    canary_percents=(10.0, 100.0),
    shadow_min_labelled=100,
    shadow_max_log_loss_delta=0.01,
    canary_max_log_loss_delta=0.02,
    canary_min_predictions=100,
    min_bake_seconds=DAY,
    max_step_seconds=5 * DAY,
    load_timeout_seconds=600.0,
)
GOOD = Counted(
    champion_predictions=9000,
    predictions=5000,
    labelled=5000,
    days=30,
    delta=-0.01,
    error=0.003,
    first_event=AT,
)
WORSE = replace(GOOD, delta=0.1)
UNDECIDED = replace(GOOD, delta=0.01, error=0.012)


async def started(policy: RolloutPolicy = POLICY, *, loaded: bool = True) -> tuple[Simulation, Rollout]:
    """Return a simulation with release 1 as the champion and a rollout of release 2."""
    simulation = Simulation()
    await simulation.create(policy=policy)
    rollout = await simulation.begin(await simulation.release())
    if loaded:
        simulation.loaded = {f"{LATE}/releases/1", f"{LATE}/releases/2"}
    return simulation, rollout


async def in_shadow(policy: RolloutPolicy = POLICY) -> tuple[Simulation, Rollout]:
    simulation, rollout = await started(policy)
    await simulation.ticks(60)
    rollout = await simulation.rollout(rollout.number)
    assert RolloutState.SHADOW is rollout.progress.state
    return simulation, rollout


def alerts(simulation: Simulation) -> list[RolloutChanged]:
    assert isinstance(simulation.store, MemoryStore)
    return [e for e, _ in simulation.store.events if isinstance(e, RolloutChanged) and e.alert]


async def assert_ended(simulation: Simulation, rollout: Rollout, state: RolloutState, words: str) -> None:
    """Assert the end, the alert, and that neither version changed its stage by it."""
    ended = await simulation.rollout(rollout.number)
    assert (state, True) == (ended.progress.state, words in ended.reason), ended.reason
    assert state.value == alerts(simulation)[-1].state
    assert Stage.PRODUCTION is await simulation.stage(1)
    assert await simulation.stage(2) in (Stage.STAGING, Stage.CANDIDATE)
    async with simulation.store.reading() as records:
        assert (1, None) == ((r := await records.routing(LATE)).champion, r.challenger)
    assert (await simulation.begin(2)).number > rollout.number, "the version may try again"


async def test_a_good_challenger_passes_every_step() -> None:
    simulation, rollout = await in_shadow()
    simulation.monitor.default = GOOD
    await simulation.ticks(4 * DAY, every=HOUR)
    done = await simulation.rollout(rollout.number)
    assert ["PENDING_LOAD", "SHADOW", "CANARY", "CANARY", "PROMOTED"] == [s.state for s in done.history]
    assert Stage.PRODUCTION is await simulation.stage(2)


async def test_a_challenger_that_never_loads_expires() -> None:
    simulation, rollout = await started(loaded=False)
    simulation.loaded = {f"{LATE}/releases/1"}
    simulation.failures = {f"{LATE}/releases/2": "GOLDEN_ROWS_DIFFER row 3"}
    await simulation.ticks(120)
    waiting = await simulation.rollout(rollout.number)
    assert "GOLDEN_ROWS_DIFFER row 3" in waiting.reason
    await simulation.ticks(540)
    await assert_ended(simulation, rollout, RolloutState.EXPIRED, "GOLDEN_ROWS_DIFFER row 3")


async def test_a_rollout_without_a_live_gateway_expires() -> None:
    simulation, rollout = await started()
    await simulation.ticks(660, gateway=False)
    await assert_ended(simulation, rollout, RolloutState.EXPIRED, "no gateway of the model is live")


async def test_event_times_of_years_ahead_bake_nothing() -> None:
    simulation, rollout = await in_shadow()
    simulation.monitor.default = replace(GOOD, days=3650)
    await simulation.ticks(0.9 * DAY, every=HOUR)
    assert RolloutState.SHADOW is (await simulation.rollout(rollout.number)).progress.state
    simulation.monitor.default = replace(UNDECIDED, days=3650)
    await simulation.ticks(4.3 * DAY, every=HOUR)
    await assert_ended(simulation, rollout, RolloutState.EXPIRED, "max_step of 5 days")


async def test_a_clock_that_jumps_years_ahead_rejects_nothing() -> None:
    simulation, rollout = await in_shadow()
    simulation.monitor.default = UNDECIDED
    await simulation.ticks(3650 * DAY, every=3650 * DAY)
    await assert_ended(simulation, rollout, RolloutState.EXPIRED, "max_step")


@pytest.mark.parametrize("state", [RolloutState.PENDING_LOAD, RolloutState.SHADOW])
async def test_a_pause_beyond_every_limit_stops_the_clock(state: RolloutState) -> None:
    simulation, rollout = await (started(loaded=False) if state is RolloutState.PENDING_LOAD else in_shadow())
    await simulation.ticks(300)
    await simulation.change("pause", rollout.number)
    await simulation.ticks(0.9 * DAY, every=HOUR)
    assert 0 == paused._value.get()
    await simulation.ticks(0.2 * DAY, every=HOUR)
    assert 1 == paused._value.get(), "a pause that lasts is reported"
    await simulation.ticks(100 * DAY, every=DAY)
    await simulation.change("resume", rollout.number)
    await simulation.ticks(240)
    resumed = await simulation.rollout(rollout.number)
    assert state is resumed.progress.state
    assert 300 <= resumed.step_seconds(simulation.clock.now()) <= 660
    simulation.loaded = {f"{LATE}/releases/1", f"{LATE}/releases/2"}
    simulation.monitor.default = GOOD
    await simulation.ticks(4 * DAY, every=HOUR)
    assert RolloutState.PROMOTED is (await simulation.rollout(rollout.number)).progress.state


async def test_each_pause_of_a_day_is_reported_once_also_after_a_restart() -> None:
    simulation, rollout = await in_shadow()

    async def pause_for_two_days() -> list[RolloutChanged]:
        before = len(alerts(simulation))
        await simulation.change("pause", rollout.number)
        await simulation.ticks(0.9 * DAY, every=HOUR)
        assert before == len(alerts(simulation))
        await simulation.ticks(0.2 * DAY, every=HOUR)
        simulation.restart()
        await simulation.ticks(DAY, every=HOUR)
        return alerts(simulation)[before:]

    (alert,) = await pause_for_two_days()
    assert ("PAUSED", rollout.number) == (alert.state, alert.rollout)
    assert "Paused for 1 day, 0:00:00: why" == alert.reason
    await simulation.change("resume", rollout.number)
    (again,) = await pause_for_two_days()
    assert alert == again
    await simulation.change("abort", rollout.number)
    await simulation.ticks(2 * DAY, every=HOUR)
    assert [alert, again] == alerts(simulation)


async def test_a_skip_late_in_a_bake_gives_the_next_step_no_time_or_evidence() -> None:
    simulation, shadow = await in_shadow()
    simulation.monitor.steps[LATE, shadow.generation] = GOOD
    await simulation.ticks(0.95 * DAY, every=HOUR)
    skipped = await simulation.skip(shadow.number)
    assert skipped.generation > shadow.generation
    assert (0.0, None) == (skipped.step_seconds(simulation.clock.now()), skipped.step_started_at)
    await simulation.ticks(4 * DAY, every=HOUR)
    held = await simulation.rollout(shadow.number)
    assert 10.0 == held.progress.challenger_percent, "the evidence of shadow is none of the canary"
    await simulation.ticks(1.1 * DAY, every=HOUR)
    await assert_ended(simulation, held, RolloutState.EXPIRED, "no evidence")


async def test_a_latency_outage_in_shadow_ends_the_rollout_only() -> None:
    simulation, rollout = await in_shadow(replace(POLICY, max_p99_ms=50.0))
    simulation.monitor.default = replace(GOOD, latency_ms=900.0)
    await simulation.ticks(60)
    await assert_ended(simulation, rollout, RolloutState.REFUSED, "p99 latency 9")


async def test_errors_in_canary_end_the_rollout_only() -> None:
    simulation, rollout = await in_shadow(replace(POLICY, max_error_rate=0.01))
    simulation.monitor.default = GOOD
    await simulation.ticks(1.2 * DAY, every=HOUR)
    simulation.monitor.default = replace(GOOD, error_rate=0.2)
    await simulation.ticks(60)
    await assert_ended(simulation, rollout, RolloutState.ROLLED_BACK, "error rate 0.2")


async def test_a_stalled_gateway_is_reported_and_the_rollout_expires() -> None:
    simulation, rollout = await in_shadow()
    simulation.monitor.default = NOTHING
    await simulation.ticks(0.9 * HOUR)
    assert not alerts(simulation)
    await simulation.ticks(2 * HOUR)
    assert 1 == stalled._value.get()
    (alert,) = alerts(simulation)
    assert ("SHADOW", rollout.number) == (alert.state, alert.rollout)
    assert alert.reason.startswith("No new evidence for 1:00:00: Evidence is missing: 0 of 100 rows labelled")
    await simulation.ticks(5 * DAY, every=HOUR)
    await assert_ended(simulation, rollout, RolloutState.EXPIRED, "0 of 100 rows labelled")


async def test_restarts_neither_delay_nor_repeat_the_report_of_a_stall() -> None:
    simulation, _ = await in_shadow()
    simulation.monitor.default = replace(NOTHING, predictions=5)
    for _ in range(6):  # each run is shorter than an hour
        await simulation.ticks(0.4 * HOUR)
        simulation.restart()
    assert ["No new evidence for 1:00:00"] == [alert.reason[:27] for alert in alerts(simulation)]
    assert 1 == stalled._value.get()


async def test_new_evidence_restarts_the_clock_of_a_stall() -> None:
    simulation, _ = await in_shadow()
    for predictions in (5, 6):
        simulation.monitor.default = replace(NOTHING, predictions=predictions)
        await simulation.ticks(0.9 * HOUR)
        assert 0 == stalled._value.get()
    assert not alerts(simulation)
    await simulation.ticks(0.2 * HOUR)
    assert 1 == len(alerts(simulation))
    simulation.monitor.default = None  # an answer that is missing is no new evidence
    await simulation.ticks(2 * HOUR)
    assert 1 == len(alerts(simulation))
    simulation.monitor.default = replace(NOTHING, predictions=7)
    await simulation.ticks(0.1 * HOUR)
    assert 0 == stalled._value.get()
    await simulation.ticks(HOUR)
    assert 2 == len(alerts(simulation)), "another stall is another report"


async def test_a_monitor_that_never_answers_expires_the_rollout() -> None:
    simulation, rollout = await in_shadow()
    await simulation.ticks(5.1 * DAY, every=HOUR)
    await assert_ended(simulation, rollout, RolloutState.EXPIRED, "no evidence")


@pytest.mark.parametrize("in_canary", [False, True])
async def test_a_crossed_quality_bound_rejects(in_canary: bool) -> None:
    simulation, rollout = await in_shadow()
    if in_canary:
        simulation.monitor.default = GOOD
        await simulation.ticks(1.2 * DAY, every=HOUR)
    simulation.monitor.default = WORSE
    await simulation.ticks(2 * DAY, every=HOUR)
    ended = await simulation.rollout(rollout.number)
    assert (RolloutState.ROLLED_BACK if in_canary else RolloutState.REFUSED) is ended.progress.state
    assert Stage.REJECTED is await simulation.stage(2)


async def test_steps_with_own_rules_last_as_long_as_they_say() -> None:
    own = StepOverride(10.0, min_bake_seconds=3 * DAY)
    simulation, rollout = await in_shadow(replace(POLICY, steps=(own,)))
    simulation.monitor.default = GOOD
    await simulation.ticks(6 * DAY, every=HOUR)
    entered = [step.entered_at for step in (await simulation.rollout(rollout.number)).history]
    lasted = [round((b - a) / timedelta(days=1), 1) for a, b in pairwise(entered[1:])]
    assert [1.0, 3.0, 1.0] == lasted


@pytest.mark.parametrize("decision", [Decision.ADVANCE, Decision.ROLL_BACK])
async def test_an_ab_test_keeps_its_split_for_weeks_until_its_verdict(decision: Decision) -> None:
    policy = RolloutPolicy(canary_percents=(50.0,), until_verdict=True, max_step_seconds=60 * DAY)
    simulation, rollout = await started(policy)
    with pytest.raises(NotAnExperiment):
        await simulation.change("conclude", rollout.number, decision)
    simulation.monitor.default = WORSE
    await simulation.ticks(42 * DAY, every=DAY)
    running = await simulation.rollout(rollout.number)
    assert ("CANARY", 50.0) == (running.progress.state, running.progress.challenger_percent)
    ended = await simulation.change("conclude", rollout.number, decision)
    ships = decision is Decision.ADVANCE
    assert (RolloutState.PROMOTED if ships else RolloutState.ROLLED_BACK) is ended.progress.state
    assert (Stage.PRODUCTION if ships else Stage.CANDIDATE) is await simulation.stage(2)


@pytest.mark.parametrize("verdict", ["SHIP", "ROLL_BACK"])
async def test_the_verdict_of_the_experiment_ends_an_ab_test(verdict: str) -> None:
    policy = RolloutPolicy(canary_percents=(50.0,), until_verdict=True, max_step_seconds=60 * DAY)
    simulation, rollout = await started(policy)
    says = ExperimentVerdict(f"{LATE}/experiments/price", "CONTINUE", "3.0 of 14 days of event time")
    simulation.monitor.default = replace(WORSE, experiment=says)
    await simulation.ticks(21 * DAY, every=DAY)
    running = await simulation.rollout(rollout.number)
    assert ("CANARY", 50.0) == (running.progress.state, running.progress.challenger_percent)
    assert "3.0 of 14 days" in running.reason
    simulation.monitor.default = replace(WORSE, experiment=replace(says, verdict=verdict))
    await simulation.ticks(60)
    ended = await simulation.rollout(rollout.number)
    ships = verdict == "SHIP"
    assert (RolloutState.PROMOTED if ships else RolloutState.ROLLED_BACK) is ended.progress.state
    assert (Stage.PRODUCTION if ships else Stage.CANDIDATE) is await simulation.stage(2)
    assert says.experiment in ended.reason


async def beside_another(simulation: Simulation) -> tuple[Simulation, Rollout]:
    """Start the rollout of another model on the same store, clock, monitor and gateways."""
    other = Simulation(simulation.store, simulation.clock, simulation.monitor, "projects/p/models/other")
    await other.create(policy=replace(POLICY, min_bake_seconds=0.0, canary_percents=(100.0,)))
    second = await other.begin(await other.release())
    other.loaded = {f"{other.model}/releases/1", f"{other.model}/releases/2"}
    simulation.monitor.default = GOOD
    return other, second


async def test_one_odd_rollout_stops_no_other() -> None:
    simulation, rollout = await in_shadow()
    other, second = await beside_another(simulation)
    simulation.monitor.steps[LATE, rollout.generation] = ZeroDivisionError("odd numbers")
    await other.ticks(600)
    assert RolloutState.PROMOTED is (await other.rollout(second.number)).progress.state
    assert RolloutState.SHADOW is (await simulation.rollout(rollout.number)).progress.state
    del simulation.monitor.steps[LATE, rollout.generation]
    await other.ticks(1.1 * DAY, every=HOUR)
    assert RolloutState.CANARY is (await simulation.rollout(rollout.number)).progress.state


async def test_rollouts_whose_evidence_is_slow_delay_no_other() -> None:
    simulation, rollout = await in_shadow()
    other, second = await beside_another(simulation)
    simulation.monitor.hangs.add(rollout.name)
    for number in range(MAX_CONCURRENT):
        slow = Simulation(
            simulation.store, simulation.clock, simulation.monitor, f"projects/p/models/slow-{number}"
        )
        await slow.create(policy=POLICY)
        started = await slow.begin(await slow.release())
        await slow.skip(started.number, loaded=True)
        simulation.monitor.hangs.add(started.name)
    await other.heartbeat()
    other.ticker._interval = 0.01
    task = asyncio.create_task(other.ticker.run())

    async def promoted() -> bool:
        return (await other.rollout(second.number)).progress.state is RolloutState.PROMOTED

    try:
        await eventually(promoted, within=10)
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    assert RolloutState.SHADOW is (await simulation.rollout(rollout.number)).progress.state
