"""The ticker: fetches evidence for every active rollout and applies the verdict, under a lease.

A tick may be repeated or interrupted at any point: it decides from what is stored, and a verdict is applied
only to the step that it was made for. Each rollout is ticked on its own: one whose evidence is slow or cannot
be read delays no other.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta

from prometheus_client import Counter, Gauge

from flywheel_common.clock import Clock
from flywheel_common.errors import FlywheelError
from flywheel_common.postgres.transactions import Store
from flywheel_common.tasks import TaskGroup
from flywheel_common.telemetry.logs import get_logger
from flywheel_registry.rollouts.comparison import Comparison
from flywheel_registry.rollouts.decision import decide
from flywheel_registry.rollouts.lifecycle import RolloutLifecycle
from flywheel_registry.rollouts.loading import GATEWAY_SECONDS, decide_load
from flywheel_registry.rollouts.ports import Monitor, RolloutRecords
from flywheel_registry.rollouts.rollout import Rollout
from flywheel_registry.rollouts.stalls import STALL_SECONDS, is_stalled
from flywheel_registry.rollouts.state_machine import RolloutState
from flywheel_registry.rollouts.verdict import Decision, duration_text
from flywheel_registry.serving.ports import Gateways

log = get_logger(__name__)

ACTOR = "registry-ticker"
"""The actor of the ticker's changes in the audit."""
MAX_CONCURRENT = 8
"""How many verdicts are stored at once; their evidence is fetched for all rollouts at once."""
REPORTED_PAUSE = timedelta(days=1)
"""A pause stops the clock of its rollout, so that the rollout does not expire: a long one is reported."""
STALLED = f"No new evidence for {duration_text(STALL_SECONDS)}"
LONG_PAUSE = f"Paused for {duration_text(REPORTED_PAUSE.total_seconds())}"

ended_total = Counter("flywheel_rollouts_ended", "Rollouts ended by the ticker", ["state"])
stalled = Gauge("flywheel_rollouts_stalled", "Active rollouts whose evidence has not grown for an hour")
paused = Gauge("flywheel_rollouts_paused", "Rollouts that have been paused for a day or longer")
failed_ticks = Counter("flywheel_rollout_ticks_failed", "Ticks of a rollout that ended with an error")


class Ticker:
    """Decides rollouts every `interval_seconds` of wall time, which bounds how late a decision is noticed."""

    def __init__(
        self,
        store: Store[RolloutRecords],
        lifecycle: RolloutLifecycle,
        monitor: Monitor,
        gateways: Gateways,
        clock: Clock,
        interval_seconds: float,
    ) -> None:
        self._store = store
        self._lifecycle = lifecycle
        self._monitor = monitor
        self._gateways = gateways
        self._clock = clock
        self._interval = interval_seconds
        self._slots = asyncio.Semaphore(MAX_CONCURRENT)
        self._busy: set[str] = set()
        self._errors: dict[str, str] = {}

    async def run(self) -> None:
        """Tick until cancelled."""
        async with TaskGroup() as ticks:
            while True:
                try:
                    await self.start_ticks(ticks)
                except FlywheelError as error:
                    if not error.retryable:
                        raise
                    log.warning("tick interrupted", reason=error.reason)
                await asyncio.sleep(self._interval)

    async def start_ticks(self, ticks: TaskGroup) -> None:
        """Begin a tick of every rollout that is undecided or paused for long without a report, unless it is
        being ticked."""
        async with self._store.reading() as records:
            undecided = await records.undecided_rollouts()
            long_paused = await records.paused_rollouts(self._clock.now() - REPORTED_PAUSE)
        paused.set(len(long_paused))
        stalled.set(sum(is_stalled(rollout, self._clock.now()) for rollout in undecided))
        active = [*undecided, *(rollout for rollout in long_paused if rollout.alerted_at is None)]
        names = {rollout.name for rollout in active}
        self._errors = {name: text for name, text in self._errors.items() if name in names}
        for rollout in active:
            if rollout.name not in self._busy:
                self._busy.add(rollout.name)
                ticks.create_task(self._tick_logged(rollout))

    async def _tick_logged(self, rollout: Rollout) -> None:
        """Tick one rollout; whatever its error, it is logged and does not stop the others."""
        try:
            await self.tick(rollout)
            self._errors.pop(rollout.name, None)
        except Exception as error:  # noqa: BLE001 - one odd rollout must not stop the others
            failed_ticks.inc()
            self._log_error(rollout, error)
        finally:
            self._busy.discard(rollout.name)

    def _log_error(self, rollout: Rollout, error: Exception) -> None:
        """Log an error of a rollout's ticks when it is another one than at the last tick."""
        text = f"{error.reason} {error.message}" if isinstance(error, FlywheelError) else repr(error)
        if self._errors.get(rollout.name) == text:
            return
        self._errors[rollout.name] = text
        expected = isinstance(error, FlywheelError)
        log.error(
            "rollout not ticked", rollout=rollout.name, error=text, exc_info=None if expected else error
        )

    async def tick(self, rollout: Rollout) -> None:
        """Fetch the evidence of a rollout's current step, decide, and apply the verdict.

        A paused rollout is reported.
        """
        if rollout.progress.state is RolloutState.PAUSED:
            log.error("rollout paused for long", rollout=rollout.name, reason=rollout.reason)
            await self._alert(rollout, f"{LONG_PAUSE}: {rollout.reason}")
            return
        waited = rollout.step_seconds(self._clock.now())
        comparison: Comparison | None = None
        if rollout.progress.state is RolloutState.PENDING_LOAD:
            gateways = await self._gateways.recent(GATEWAY_SECONDS)
            verdict = decide_load(gateways, rollout.model, rollout.challenger, rollout.policy, waited)
        else:
            comparison = await self._monitor.compare(rollout)
            verdict = decide(comparison, rollout.policy, rollout.progress, waited)
        if verdict.decision is Decision.HOLD:
            async with self._slots, self._store.reading() as records:
                held = await self._lifecycle.apply_verdict(records, rollout, verdict, comparison, ACTOR)
            if held is not None and held.alerted_at is None and is_stalled(held, self._clock.now()):
                log.error("rollout stalled: no new evidence", rollout=rollout.name, reason=verdict.reason)
                await self._alert(held, f"{STALLED}: {verdict.reason}")
            return
        async with self._slots, self._store.transaction() as records:
            changed = await self._lifecycle.apply_verdict(records, rollout, verdict, comparison, ACTOR)
        if changed is None:
            return
        advanced = verdict.decision is Decision.ADVANCE
        (log.info if advanced else log.error)(
            "rollout changed",
            rollout=rollout.name,
            decision=verdict.decision,
            state=changed.progress.state,
            percent=changed.progress.challenger_percent,
            reason=verdict.reason,
        )
        if not changed.progress.active:
            ended_total.labels(changed.progress.state.value).inc()

    async def _alert(self, rollout: Rollout, reason: str) -> None:
        async with self._slots, self._store.transaction() as records:
            await self._lifecycle.alert(records, rollout, reason)
