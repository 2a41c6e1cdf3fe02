"""Stages, rollouts and rollbacks driven at random on both stores, compared with a model of the rules."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from flywheel_common.errors import FlywheelError
from flywheel_common.ids import new_id
from flywheel_common.postgres.migrate import migrate
from flywheel_common.postgres.pool import create_pool
from flywheel_registry.api.convert_events import to_event
from flywheel_registry.audit.chain import first_break
from flywheel_registry.fakes.store import MemoryStore
from flywheel_registry.models.names import VersionName
from flywheel_registry.policies.rollout_policy import RolloutPolicy
from flywheel_registry.promotion.promotion import Promotions
from flywheel_registry.releases.names import ReleaseName
from flywheel_registry.releases.release import Release
from flywheel_registry.rollback.rollback import Rollbacks
from flywheel_registry.server import MIGRATIONS
from flywheel_registry.stages.transitions import Stage
from flywheel_registry.store.postgres.store import PostgresStore
from tests.support.builders.rollouts import AT, Simulation
from tests.support.builders.step_evidence import Counted

HOUR, DAY = 3600.0, 86_400.0
POLICY = RolloutPolicy(
    canary_percents=(10.0, 100.0),
    shadow_min_labelled=100,
    shadow_max_log_loss_delta=0.01,
    canary_max_log_loss_delta=0.01,
    min_bake_seconds=DAY,
    max_step_seconds=5 * DAY,
    load_timeout_seconds=1800.0,
    max_p99_ms=50.0,
)
GOOD = Counted(
    champion_predictions=5000,
    predictions=5000,
    labelled=5000,
    days=30,
    delta=-0.01,
    error=0.003,
    first_event=AT,
)
EVIDENCE: dict[str, Counted | None] = {
    "none": None,
    "good": GOOD,
    "worse": replace(GOOD, delta=0.1),
    "undecided": replace(GOOD, delta=0.01, error=0.012),
    "slow": replace(GOOD, latency_ms=900.0),
}


@dataclass
class Running:
    """The active rollout in the model of the rules. `position` 0: loading, 1: shadow, 2: 10 %, 3: 100 %."""

    number: int
    release: int
    position: int = 0
    elapsed: float = 0.0
    paused: bool = False

    @property
    def state(self) -> tuple[str, float]:
        state = ("PENDING_LOAD", "SHADOW", "CANARY", "CANARY")[self.position]
        return "PAUSED" if self.paused else state, self.percent

    @property
    def percent(self) -> float:
        return (0.0, 0.0, 10.0, 100.0)[self.position]


class Oracle:
    """The rules as plain Python: what stages, serving and rollouts must be."""

    def __init__(self) -> None:
        self.stages: dict[int, str] = {}
        self.version_of: dict[int, int] = {}
        self.stack: list[int] = []
        self.served: set[int] = set()
        self.running: Running | None = None
        self.ends: dict[int, str] = {}
        self.rollouts = 0

    @property
    def champion(self) -> int | None:
        return self.stack[-1] if self.stack else None

    def serve(self, release: int) -> None:
        version = self.version_of[release]
        for other, stage in self.stages.items():
            if stage == "PRODUCTION" and other != version:
                self.stages[other] = "ARCHIVED"
        self.stages[version] = "PRODUCTION"
        self.served.add(release)

    def start(self, release: int) -> str | None:
        """Start a rollout, or return the reason why it is refused."""
        if self.running is not None:
            return "ROLLOUT_ACTIVE"
        if self.stages[self.version_of[release]] not in ("STAGING", "CANDIDATE", "PRODUCTION"):
            return "NOT_STAGED"
        if release == self.champion:
            return "ALREADY_SERVING"
        self.rollouts += 1
        self.running = Running(self.rollouts, release)
        return None

    def end(self, state: str) -> None:
        assert self.running is not None
        self.ends[self.running.number], self.running = state, None

    def advance(self) -> None:
        assert self.running is not None
        release, version = self.running.release, self.version_of[self.running.release]
        self.running.position = self.running.position + 1 if self.champion else 4
        self.running.elapsed, self.running.paused = 0.0, False
        if self.running.position >= 2 and self.stages[version] == "STAGING":
            self.stages[version] = "CANDIDATE"
        if self.running.position == 4:
            self.end("PROMOTED")
            self.stack = [n for n in self.stack if n != release] + [release]
            self.serve(release)

    def reject_challenger(self) -> None:
        assert self.running is not None
        version = self.version_of[self.running.release]
        if self.stages[version] in ("STAGING", "CANDIDATE"):
            self.stages[version] = "REJECTED"

    def tick(self, seconds: float, evidence: str, loaded: bool) -> None:
        run = self.running
        if run is None or run.paused:
            return
        run.elapsed += seconds
        baked, late = run.elapsed >= DAY, run.elapsed > 5 * DAY
        if run.position == 0:
            if loaded:
                self.advance()
            elif run.elapsed > 1800:
                self.end("EXPIRED")
        elif evidence == "slow":
            self.end("REFUSED" if run.position == 1 else "ROLLED_BACK")
        elif evidence == "worse" and (run.position == 2 or (run.position == 1 and baked)):
            self.reject_challenger()
            self.end("REFUSED" if run.position == 1 else "ROLLED_BACK")
        elif baked and (evidence == "good" or (evidence != "none" and run.position >= 2)):
            self.advance()
        elif late:
            self.end("EXPIRED")

    def roll_back(self, wanted: int | None) -> str | None:
        """Roll back, or return the reason why it is refused."""
        if self.running is not None and wanted is None and self.running.percent > 0:
            self.end("ROLLED_BACK")
            return None
        if wanted is not None:
            if wanted == self.champion or wanted not in self.served:
                return "NOTHING_TO_ROLL_BACK_TO"
            if self.stages[self.version_of[wanted]] == "REJECTED":
                return "REJECTED_VERSION"
            target = wanted
        else:
            former = [n for n in self.stack[:-1] if self.stages[self.version_of[n]] != "REJECTED"]
            if not former:
                return "NOTHING_TO_ROLL_BACK_TO"
            target = former[-1]
        if self.running is not None:
            self.end("ABORTED")
        if target in self.stack:
            self.stack = self.stack[: self.stack.index(target) + 1]
        else:
            self.stack.append(target)
        self.serve(target)
        return None

    def promote(self, version: int, target: str) -> str | None:
        """Promote with an override, or return the reason why it is refused."""
        order = ["STAGING", "CANDIDATE", "PRODUCTION"]
        stage = self.stages[version]
        if stage not in order[:2] or order.index(target) <= order.index(stage):
            return "ILLEGAL_TRANSITION"
        if self.running is not None:
            decided = self.version_of[self.running.release] == version
            if decided or target == "PRODUCTION":
                return "ROLLOUT_ACTIVE"
        self.stages[version] = target
        if target == "PRODUCTION":
            release = max(number for number, of in self.version_of.items() if of == version)
            self.stack = [n for n in self.stack if n != release] + [release]
            self.serve(release)
        return None

    def reject(self, version: int) -> str | None:
        if self.stages[version] in ("PRODUCTION", "REJECTED"):
            return "ILLEGAL_TRANSITION"
        if self.running is not None and self.version_of[self.running.release] == version:
            return "ROLLOUT_ACTIVE"
        self.stages[version] = "REJECTED"
        return None


class RolloutMachine(RuleBasedStateMachine):
    """Drives a registry's use cases and the oracle with the same commands."""

    runner: asyncio.Runner
    open: Callable[[], Any]
    """Returns the store of an example."""

    def __init__(self) -> None:
        super().__init__()
        self.store = self.open()
        self.oracle = Oracle()
        self.simulation = Simulation(self.store, model=f"projects/p/models/m-{new_id()}")
        self.do(self.simulation.create(policy=POLICY, champion=False))
        for _ in range(3):
            self.add_version()
        self.start(0)
        self.tick(60.0, "none", True)
        self.start(1)

    def do(self, work: Any) -> Any:
        return self.runner.run(work)

    def reason_of(self, work: Any) -> str | None:
        """Run a command and return the reason of its refusal."""
        try:
            self.do(work)
        except FlywheelError as error:
            return error.reason
        return None

    def pick(self, choice: int) -> int | None:
        """Return one of the releases, None while there is none."""
        return 1 + choice % len(self.oracle.version_of) if self.oracle.version_of else None

    @rule()
    def add_version(self) -> None:
        release = self.do(self.simulation.release())
        version = len(self.oracle.stages) + 1
        self.oracle.stages[version], self.oracle.version_of[release] = "STAGING", version

    @rule(choice=st.integers(0, 4))
    def add_release(self, choice: int) -> None:
        if not self.oracle.stages:
            return
        version = 1 + choice % len(self.oracle.stages)

        async def add() -> int:
            async with self.store.transaction() as records:
                added = await records.add_release(Release(self.simulation.model, version, created_at=AT))
                return int(added.number)

        self.oracle.version_of[self.do(add())] = version

    @rule(choice=st.integers(0, 4))
    def start(self, choice: int) -> None:
        release = self.pick(choice)
        if release is not None:
            assert self.oracle.start(release) == self.reason_of(self.simulation.begin(release))

    @rule(
        seconds=st.sampled_from([60.0, HOUR, 0.6 * DAY, 2 * DAY, 6 * DAY]),
        evidence=st.sampled_from(sorted(EVIDENCE)),
        loaded=st.booleans(),
    )
    def tick(self, seconds: float, evidence: str, loaded: bool) -> None:
        async def once() -> None:
            simulation = self.simulation
            simulation.clock.advance(seconds)
            simulation.monitor.default = EVIDENCE[evidence]
            names = (f"{simulation.model}/releases/{n}" for n in self.oracle.version_of)
            simulation.loaded = set(names) if loaded else set()
            await simulation.heartbeat()
            async with self.store.reading() as records:
                undecided = await records.undecided_rollouts()
            for rollout in undecided:
                if rollout.model == simulation.model:
                    await simulation.ticker.tick(rollout)

        self.do(once())
        self.oracle.tick(seconds, evidence, loaded)

    @rule(steps=st.integers(0, 4), last=st.sampled_from(["good", "worse", "slow"]))
    def proceed(self, steps: int, last: str) -> None:
        """Pass steps with good evidence, so that long walks reach promotions and refusals."""
        for evidence in [*["good"] * steps, last]:
            self.tick(2 * DAY, evidence, True)

    @rule(choice=st.integers(0, 4))
    def reject_former_champion(self, choice: int) -> None:
        if former := self.oracle.stack[:-1]:
            self.reject(self.oracle.version_of[former[-1 - choice % len(former)]] - 1)
            self.roll_back(None)

    @rule(command=st.sampled_from(["pause", "resume", "skip", "abort"]), loaded=st.booleans())
    def command(self, command: str, loaded: bool) -> None:
        async def change(number: int) -> None:
            if command == "skip":
                self.simulation.loaded = set()
                await self.simulation.heartbeat()
                await self.simulation.skip(number, loaded=loaded)
            else:
                await self.simulation.change(command, number)

        run = self.oracle.running
        if run is None:
            if self.oracle.rollouts:
                expected = "NOT_PAUSED" if command == "resume" else "ROLLOUT_ENDED"
                assert expected == self.reason_of(change(self.oracle.rollouts))
            return
        expected = "NOT_PAUSED" if command == "resume" and not run.paused else None
        if command == "skip" and run.position == 0 and not loaded:
            expected = "NOT_LOADED"
        assert expected == self.reason_of(change(run.number))
        if expected == "NOT_LOADED":
            return
        if command == "skip":
            self.oracle.advance()
        elif command == "abort":
            self.oracle.end("ABORTED")
        else:
            run.paused = command == "pause"

    @rule(choice=st.integers(0, 4), to_stage=st.sampled_from(["CANDIDATE", "PRODUCTION"]))
    def promote(self, choice: int, to_stage: str) -> None:
        version = 1 + choice % len(self.oracle.stages)
        act = self.simulation.promote(version, Stage(to_stage), override=True)
        assert self.oracle.promote(version, to_stage) == self.reason_of(act)

    @rule(wanted=st.none() | st.integers(0, 4))
    def roll_back(self, wanted: int | None) -> None:
        release = None if wanted is None else self.pick(wanted)
        if not self.oracle.version_of:
            return

        async def back() -> None:
            async with self.store.transaction() as records:
                name = None if release is None else ReleaseName.numbered(self.simulation.model, release)
                rollbacks = Rollbacks(self.simulation.clock, self.simulation.lifecycle)
                await rollbacks.roll_back(records, self.simulation.model, name, "bad", "ann")

        assert self.oracle.roll_back(release) == self.reason_of(back())

    @rule(choice=st.integers(0, 4))
    def reject(self, choice: int) -> None:
        if not self.oracle.stages:
            return
        version = 1 + choice % len(self.oracle.stages)

        async def act() -> None:
            async with self.store.transaction() as records:
                name = VersionName.numbered(self.simulation.model, version)
                await Promotions(self.simulation.clock).reject(records, name, "bad", "ann")

        assert self.oracle.reject(version) == self.reason_of(act())

    @invariant()
    def agrees_with_the_rules(self) -> None:
        self.do(self._compare())

    async def _compare(self) -> None:
        model, run = self.simulation.model, self.oracle.running
        async with self.store.reading() as records:
            versions = await records.versions(model, 1 << 30, None, {}, 999)
            routing = await records.routing(model)
            rollouts = await records.rollouts(model, 1 << 30, 999)
            spans = await records.spans(model)
            audit = await records.audit(model, 1 << 30, 9999)
        assert self.oracle.stages == {v.number: v.stage.value for v in versions}
        assert self.oracle.champion == routing.champion
        serving = (run is not None and (run.release, run.percent)) or (None, 0.0)
        assert serving == (routing.challenger, routing.challenger_percent)
        assert [self.oracle.champion] * bool(spans) == [s.release for s in spans if s.until is None]
        active = [
            (r.number, r.progress.state, r.progress.challenger_percent) for r in rollouts if not r.ended_at
        ]
        assert active == ([] if run is None else [(run.number, *run.state)])
        assert self.oracle.ends == {r.number: r.progress.state.value for r in rollouts if r.ended_at}
        assert first_break(model, audit[::-1]) is None
        if run is not None:
            (mine,) = [r for r in rollouts if not r.ended_at]
            assert run.elapsed == pytest.approx(mine.step_seconds(self.simulation.clock.now()), abs=1e-3)


@pytest.mark.timeout(590)
def test_stages_rollouts_and_rollbacks_follow_the_rules(dsn: str) -> None:
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        # The adapter in memory looks through all its rows, so that each example has a store of its own.
        open_store: Callable[[], Any] = MemoryStore
        if dsn:

            async def in_postgres() -> Any:
                pool = await stack.enter_async_context(create_pool(dsn))
                await migrate(pool, MIGRATIONS)
                return PostgresStore(pool, to_event)

            shared = runner.run(in_postgres())

            def open_store() -> Any:
                return shared

        machine = type("Machine", (RolloutMachine,), {"runner": runner, "open": staticmethod(open_store)})
        examples = 15 if dsn else 200
        try:
            run_state_machine_as_test(
                machine,
                settings=settings(
                    max_examples=examples,
                    stateful_step_count=40,
                    deadline=None,
                    suppress_health_check=list(HealthCheck),
                ),
            )
        finally:
            runner.run(stack.aclose())
