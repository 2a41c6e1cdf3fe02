"""How the supervisor moves jobs to their end, whatever becomes of the engine, its log and its answers."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from flywheel_common.clock import ManualClock
from flywheel_common.fakes.objects import MemoryObjectStore
from flywheel_common.granted.access import Access
from flywheel_common.postgres.errors import LeaseLost
from flywheel_common.ray.errors import EngineUnavailable
from flywheel_job.outcome import Outcome
from flywheel_trainer.fakes.engine import MemoryEngine
from flywheel_trainer.fakes.jobs import MemoryJobs
from flywheel_trainer.fakes.runs import MemoryRuns
from flywheel_trainer.fakes.supervision import MemorySupervision
from flywheel_trainer.fakes.tracking import MemoryTracking
from flywheel_trainer.jobs.engine import EngineJob, EngineState
from flywheel_trainer.jobs.errors import FeaturesNotJoined
from flywheel_trainer.jobs.job import Job, JobState
from flywheel_trainer.jobs.kinds import Launch, Preparation
from flywheel_trainer.jobs.limits import Limits
from flywheel_trainer.jobs.logs import StoredLogs
from flywheel_trainer.jobs.resources import Node, Quota
from flywheel_trainer.jobs.supervision import INFEASIBLE_SECONDS, Rules, Supervisor
from flywheel_trainer.jobs.train import TrainKind, TrainSettings
from flywheel_trainer.runs.lease import LeaseExpiry
from flywheel_trainer.runs.run import Run, RunState
from tests.support.builders import trainer as build
from tests.support.builders.trainer import AT, SECOND, metric_point
from tests.support.eventually import eventually

JOB = build.job()
DETAILS = {"uri": "s3://b/ts", "columns": [], "warm_start": None}
LOST = EngineJob(EngineState.FAILED, "the job supervisor died", machine_lost=True)


class AlwaysRunning(dict[str, Any]):
    """Programs of an engine on which every command runs until it is stopped."""

    def get(self, command: str, default: Any = None) -> Any:
        return lambda _environment: ("", None)


class FaultyEngine(MemoryEngine):
    """An engine with faults of single methods."""

    submissions_time_out = False
    log_is_lost = False

    async def submit(self, job_id: str, command: str, environment: Mapping[str, str]) -> None:
        if self.submissions_time_out:
            raise EngineUnavailable("Ray does not answer: timeout.")
        await super().submit(job_id, command, environment)

    async def log_tail(self, job_id: str, max_bytes: int) -> bytes:
        if self.log_is_lost:
            raise EngineUnavailable("Ray answered 500.")
        return await super().log_tail(job_id, max_bytes)


@dataclass
class World:
    """A supervisor over adapters in memory, whose engine runs every attempt until a test ends it."""

    tracking: MemoryTracking = field(default_factory=MemoryTracking)
    objects: MemoryObjectStore = field(default_factory=MemoryObjectStore)
    engine: FaultyEngine = field(default_factory=FaultyEngine)
    clock: ManualClock = field(default_factory=lambda: ManualClock(AT))
    quotas: dict[str, Quota] = field(default_factory=dict)
    max_running: int = 2
    _tokens: Any = field(default_factory=lambda: itertools.count(1))

    def __post_init__(self) -> None:
        self.engine.programs = AlwaysRunning()
        self.jobs, self.runs = MemoryJobs(self.tracking), MemoryRuns(self.tracking)
        self.restart()

    def restart(self, kind: Any = None) -> None:
        """Another supervisor, which remembers nothing, takes the lease."""
        kind = kind or TrainKind(None, None, None, None, TrainSettings("b", "python", "trainer:7103", 1.0))  # type: ignore[arg-type]
        rules = Rules(
            "b",
            "python",
            lambda engine_id: {"TOKEN": engine_id},
            self.max_running,
            lambda project: self.quotas.get(project, Quota()),
        )
        store = MemorySupervision(self.tracking, next(self._tokens))
        self.supervisor = Supervisor(store, self.engine, self.objects, {"TRAIN": kind}, rules, self.clock)

    async def submit(self, number: str = "1", limits: Limits | None = None, **fields: Any) -> Job:
        if not self.tracking.experiments:
            await self.runs.create_experiment(build.EXPERIMENT, "", b"", AT)
        workers = fields.pop("workers", 1)
        spec = replace(build.TRAIN_SPEC, limits=limits or Limits(), workers=workers)
        job = replace(build.job(number, **fields), spec=spec)
        return await self.jobs.create(job, DETAILS, "", b"", self.clock.now())

    async def tick(self, times: int = 1, seconds: float = 1.0) -> None:
        for _ in range(times):
            await self.supervisor.tick()
            self.clock.advance(seconds)

    async def outcome(self, outcome: Outcome, file: str = "outcome.json", attempt: int = 1) -> None:
        await self.objects.put(f"jobs/p/job-1/attempts/{attempt}/{file}", outcome.to_json())

    async def job(self, number: str = "1") -> Job:
        job = await self.jobs.get(build.job(number).name)
        assert job is not None
        return job

    async def run(self) -> Run:
        run = await self.runs.get_run(JOB.run)
        assert run is not None
        return run

    async def steps(self, *steps: int, attempt: str = "job-1-1") -> None:
        """Log points of a metric as an attempt does."""
        points = [metric_point("train_loss", step, 0.5) for step in steps]
        await self.runs.log(JOB.run, points, self.clock.now(), attempt)


@pytest.fixture
async def world() -> World:
    """A world in which attempt 1 of job-1 runs."""
    world = World()
    await world.submit()
    await world.tick()
    assert (await world.job()).state is JobState.RUNNING
    return world


async def ended(world: World, how: EngineJob, log: bytes | None = None) -> Job:
    """job-1 after its last attempt ended on the engine, and a tick."""
    attempt = (await world.job()).attempts[-1]
    world.engine.becomes(attempt.engine_id, how, log=log)
    await world.tick()
    return await world.job()


async def test_an_attempt_gets_its_files_its_command_and_its_token(world: World) -> None:
    started = world.engine.started["job-1-1"]
    assert "exec python -m flywheel_job.launcher s3://b/jobs/p/job-1/logs/driver 1 -- " in started.command
    assert started.command.endswith(" s3://b/jobs/p/job-1/attempts/1/spec.json")
    assert {"TOKEN": "job-1-1"} == started.environment
    assert world.tracking.access["job-1-1"] == Access(
        reads=("s3://b/ts",),
        writes=(
            "s3://b/jobs/p/job-1/attempts/1",
            "s3://b/jobs/p/job-1/logs",
            "s3://b/jobs/p/job-1/checkpoints",
        ),
        artifacts="s3://b/artifacts",
    )
    assert b'"trainer:7103"' in await world.objects.get("jobs/p/job-1/attempts/1/spec.json")


async def test_a_queued_job_starts_before_the_next_poll() -> None:
    world, queued = World(), asyncio.Event()
    supervision = asyncio.create_task(world.supervisor.run(3600, queued))
    try:
        for _ in range(2):  # after the first tick, which may be the one at the start
            queued.set()
            await eventually(lambda: not queued.is_set())
        await world.submit()
        queued.set()

        async def runs() -> bool:
            return (await world.job()).state is JobState.RUNNING

        await eventually(runs)
    finally:
        supervision.cancel()
        await asyncio.gather(supervision, return_exceptions=True)


async def test_a_success_is_stored_with_its_run(world: World) -> None:
    await world.outcome(Outcome(True, points=(metric_point("auc", 1, 0.75),)))
    job = await ended(world, EngineJob(EngineState.SUCCEEDED))
    run = await world.run()
    assert (JobState.SUCCEEDED, "", RunState.SUCCEEDED) == (job.state, job.error_reason, run.state)
    assert {"auc": 0.75} == run.metrics


async def test_a_job_ends_although_its_log_is_lost(world: World) -> None:
    world.engine.log_is_lost = True
    job = await ended(world, EngineJob(EngineState.FAILED, "exit 1", 1))
    assert (JobState.FAILED, "JOB_CRASHED") == (job.state, job.error_reason)
    assert "exit 1" in job.error_message
    assert RunState.FAILED == (await world.run()).state


async def test_a_nul_byte_in_the_end_of_the_log_ends_the_job_and_no_other(world: World) -> None:
    """Ray repeats the end of the log in its message; PostgreSQL stores no NUL."""
    await world.submit("2")
    await world.tick()
    failed = EngineJob(EngineState.FAILED, "exit code 1, last logs: a\0b", 1)
    job = await ended(world, failed, log=b"1\n\xff\0bad\n")
    assert (JobState.FAILED, "JOB_CRASHED") == (job.state, job.error_reason)
    assert "\0" not in job.error_message
    assert "bad" in job.error_message
    assert (await world.job("2")).state is JobState.RUNNING


async def test_nul_bytes_in_an_outcome_are_replaced(world: World) -> None:
    await world.outcome(Outcome(False, "X\0", "boom \0", params={"a\0": "\0"}), "failure.json")
    job = await ended(world, EngineJob(EngineState.FAILED, exit_code=1))
    assert ("X\N{REPLACEMENT CHARACTER}", "boom \N{REPLACEMENT CHARACTER}") == (
        job.error_reason,
        job.error_message,
    )
    assert {"a\N{REPLACEMENT CHARACTER}": "\N{REPLACEMENT CHARACTER}"} == (await world.run()).params


async def test_an_unknown_status_of_the_engine_is_shown_and_ends_nothing(world: World) -> None:
    world.engine.becomes("job-1-1", EngineJob(EngineState.UNRECOGNIZED, "PAUSED"))
    await world.tick(3)
    job = await world.job()
    assert (JobState.RUNNING, "the engine reports an unknown state: PAUSED") == (
        job.state,
        job.progress["message"],
    )


async def test_an_unexpected_error_of_one_job_ends_it_and_not_the_supervisor(world: World) -> None:
    class Broken(TrainKind):
        async def conclude(self, read: Any) -> Any:
            raise ZeroDivisionError

    await world.submit("2")
    await world.tick()
    world.restart(Broken(None, None, None, None, TrainSettings("b", "python", "", 1.0)))  # type: ignore[arg-type]
    await ended(world, EngineJob(EngineState.FAILED))
    assert (await world.job()).state is JobState.RUNNING
    await world.tick(9)
    job = await world.job()
    assert (JobState.FAILED, "NOT_SUPERVISABLE") == (job.state, job.error_reason)
    assert (await world.job("2")).state is JobState.RUNNING


async def test_the_success_of_rank_0_outranks_a_later_failure(world: World) -> None:
    await world.outcome(Outcome(True, params={"lr": "1"}))
    await world.outcome(Outcome(False, "TRAINING_FAILED", "rank 1 died"), "failure.json")
    job = await ended(world, EngineJob(EngineState.FAILED, "exit 1", 1))
    assert (JobState.SUCCEEDED, {"lr": "1"}) == (job.state, (await world.run()).params)


async def test_an_error_of_the_training_code_is_not_attempted_again(world: World) -> None:
    await world.outcome(Outcome(False, "TRAINING_FAILED", "ValueError: no"), "failure.json")
    job = await ended(world, EngineJob(EngineState.FAILED, exit_code=1))
    assert (JobState.FAILED, "TRAINING_FAILED", "ValueError: no") == (
        job.state,
        job.error_reason,
        job.error_message,
    )
    assert 1 == len(job.attempts)


@pytest.mark.parametrize(
    ("how", "failure", "reason"),
    [
        (LOST, "", "JOB_LOST"),
        (EngineJob(EngineState.FAILED, "killed", -9), "", "JOB_KILLED"),
        (EngineJob(EngineState.FAILED, "killed", 137), "", "JOB_KILLED"),
        (EngineJob(EngineState.FAILED, "exit 1", 1), "WORKER_LOST", "WORKER_LOST"),
    ],
)
async def test_a_loss_is_followed_by_another_attempt(
    world: World, how: EngineJob, failure: str, reason: str
) -> None:
    if failure:
        await world.outcome(Outcome(False, failure, "gone"), "failure.json")
    job = await ended(world, how)
    assert (JobState.QUEUED, reason) == (job.state, job.attempts[0].error_reason)
    await world.tick(5)
    job = await world.job()
    assert (JobState.RUNNING, ["job-1-1", "job-1-2"]) == (job.state, [a.engine_id for a in job.attempts])
    await world.outcome(Outcome(True), attempt=2)
    job = await ended(world, EngineJob(EngineState.SUCCEEDED))
    assert (JobState.SUCCEEDED, RunState.SUCCEEDED) == (job.state, (await world.run()).state)


async def test_attempts_that_a_restarted_engine_forgot_are_repeated_up_to_the_limit(world: World) -> None:
    for number in (1, 2, 3):
        assert number == len((await world.job()).attempts)
        world.engine.lose_everything()
        await world.tick(12)
    job = await world.job()
    assert (JobState.LOST, "JOB_LOST", RunState.LOST) == (
        job.state,
        job.error_reason,
        (await world.run()).state,
    )
    assert 3 == len(job.attempts)
    assert not world.engine.started


async def test_a_job_that_succeeded_before_the_engine_was_lost_has_succeeded(world: World) -> None:
    await world.outcome(Outcome(True))
    world.engine.lose_everything()
    await world.tick()
    assert JobState.SUCCEEDED == (await world.job()).state


async def test_a_refused_job_fails_and_the_next_one_starts() -> None:
    world = World(max_running=1)
    await world.submit("1", priority=1)
    await world.submit("2")
    world.engine.refuses = "Ray refused the job: invalid runtime_env"
    await world.tick()
    world.engine.refuses = ""
    await world.tick()
    first = await world.job("1")
    assert (JobState.FAILED, "ENGINE_REFUSED") == (first.state, first.error_reason)
    assert "invalid runtime_env" in first.error_message
    assert (await world.job("2")).state is JobState.RUNNING


async def test_a_submission_that_timed_out_and_was_accepted_is_supervised() -> None:
    world = World()
    await world.submit()
    world.engine.submissions_time_out = True
    await world.tick(2)
    assert (await world.job()).state is JobState.QUEUED
    await MemoryEngine.submit(world.engine, "job-1-1", "late", {})  # it lands later
    await world.tick()
    job = await world.job()
    assert (JobState.RUNNING, 1) == (job.state, len(job.attempts))


async def test_an_engine_that_never_accepts_a_job_does_not_hold_its_slot_for_ever() -> None:
    """Ray answers 500 to some requests that it can never satisfy."""
    world = World(max_running=1)
    await world.submit("1", limits=Limits(max_attempts=2))
    world.engine.submissions_time_out = True
    await world.tick(70, 10)
    job = await world.job()
    assert [("JOB_LOST", True), ("", False)] == [
        (attempt.error_reason, attempt.ended_at is not None) for attempt in job.attempts
    ]
    await world.tick(70, 10)
    job = await world.job()
    assert (JobState.LOST, "JOB_LOST") == (job.state, job.error_reason)
    world.engine.submissions_time_out = False
    await world.submit("2")
    await world.tick()
    assert (await world.job("2")).state is JobState.RUNNING


async def test_a_submission_that_lands_after_the_end_of_its_job_is_stopped() -> None:
    world = World()
    await world.submit()
    world.engine.submissions_time_out = True
    await world.tick()
    await world.jobs.request_cancel(JOB.name)
    await world.tick()
    assert (await world.job()).state is JobState.CANCELLED
    await MemoryEngine.submit(world.engine, "job-1-1", "late", {})
    await world.tick(10)
    assert EngineState.STOPPED == (await world.engine.state("job-1-1")).state


async def test_only_orphans_of_this_installation_are_stopped(world: World) -> None:
    other = MemoryEngine(owner="another", cluster=world.engine.started)
    other.programs = AlwaysRunning()
    await other.submit("theirs-1", "x", {})
    await MemoryEngine.submit(world.engine, "orphan-1", "x", {})
    await world.tick(10)
    states = {job_id: started.job.state for job_id, started in world.engine.started.items()}
    running, stopped = EngineState.RUNNING, EngineState.STOPPED
    assert {"job-1-1": running, "theirs-1": running, "orphan-1": stopped} == states


async def test_the_engine_forgets_attempts_an_hour_after_their_end(world: World) -> None:
    await world.outcome(Outcome(True))
    await ended(world, EngineJob(EngineState.SUCCEEDED))
    world.engine.started["job-1-1"] = replace(world.engine.started["job-1-1"], ended_at=world.clock.now())
    await world.tick(10, 300)
    assert "job-1-1" in world.engine.started
    await world.tick(5, 300)
    assert "job-1-1" not in world.engine.started


async def test_a_cancelled_job_is_stopped_and_its_success_is_kept(world: World) -> None:
    await world.jobs.request_cancel(JOB.name)
    await world.tick(2)
    job = await world.job()
    assert (JobState.CANCELLED, RunState.CANCELLED) == (job.state, (await world.run()).state)
    assert EngineState.STOPPED == (await world.engine.state("job-1-1")).state


async def test_a_new_supervisor_continues_and_the_old_one_changes_nothing(world: World) -> None:
    before = world.supervisor
    world.restart()
    await world.outcome(Outcome(True))
    world.engine.becomes("job-1-1", EngineJob(EngineState.SUCCEEDED))
    with pytest.raises(LeaseLost):
        await before.tick()
    assert (await world.job()).state is JobState.RUNNING
    await world.tick()
    assert (await world.job()).state is JobState.SUCCEEDED


async def test_a_job_without_steps_is_stopped_as_stalled() -> None:
    world = World()
    await world.submit(limits=Limits(stall_seconds=30))
    await world.tick(20)
    await world.steps(1)
    await world.tick(30)
    assert (await world.job()).state is JobState.RUNNING
    await world.tick(5)
    job = await world.job()
    assert (JobState.FAILED, "JOB_STALLED") == (job.state, job.error_reason)
    assert EngineState.STOPPED == (await world.engine.state("job-1-1")).state


async def test_a_job_whose_metrics_never_arrive_is_not_stalled_while_it_prints() -> None:
    world = World()
    await world.submit(limits=Limits(stall_seconds=30))
    for length in range(1, 60):
        await world.objects.put(f"jobs/p/job-1/logs/driver/{0:020d}-0001", b"." * length)
        await world.tick()
    assert (await world.job()).state is JobState.RUNNING
    await world.tick(35)
    assert "JOB_STALLED" == (await world.job()).error_reason


async def test_time_in_which_the_engine_is_away_is_no_stall() -> None:
    world = World()
    await world.submit(limits=Limits(stall_seconds=30))
    await world.tick(10)
    world.engine.down = True
    await world.tick(120)
    world.engine.down = False
    await world.tick(8)
    assert (await world.job()).state is JobState.RUNNING
    await world.steps(1)
    await world.tick(2)
    assert 1 == (await world.job()).progress["done"]


async def test_time_in_which_no_supervisor_works_is_no_stall() -> None:
    world = World()
    await world.submit(limits=Limits(stall_seconds=30))
    await world.tick(10)
    world.clock.advance(600)
    world.restart()
    await world.tick(8)
    assert (await world.job()).state is JobState.RUNNING


async def test_an_attempt_longer_than_the_timeout_is_stopped() -> None:
    world = World()
    await world.submit(limits=Limits(timeout_seconds=60))
    for second in range(30):
        await world.tick(2)
        await world.steps(second)
    assert (await world.job()).state is JobState.RUNNING
    await world.tick(4)
    job = await world.job()
    assert (JobState.FAILED, "JOB_TIMEOUT") == (job.state, job.error_reason)


async def test_a_job_that_ended_in_an_outage_longer_than_its_timeout_has_its_own_outcome() -> None:
    world = World()
    await world.submit(limits=Limits(timeout_seconds=60))
    await world.tick()
    await world.outcome(Outcome(True))
    world.engine.becomes("job-1-1", EngineJob(EngineState.SUCCEEDED))
    world.clock.advance(600)
    await world.tick()
    assert (await world.job()).state is JobState.SUCCEEDED


async def test_a_job_that_waits_longer_than_the_lease_keeps_its_run() -> None:
    world = World(max_running=0)
    await world.submit()
    expiry = LeaseExpiry(world.runs, world.clock)
    for _ in range(18):
        await world.tick(seconds=10)
        assert [] == await expiry.expire()
    assert RunState.RUNNING == (await world.run()).state
    assert "waits for a free slot: 0 jobs run" == (await world.job()).progress["message"]


async def test_an_outage_of_the_engine_ends_no_run(world: World) -> None:
    expiry = LeaseExpiry(world.runs, world.clock)
    world.engine.down = True
    for _ in range(20):
        await world.tick(seconds=10)
        await expiry.expire()
    job = await world.job()
    assert (JobState.RUNNING, RunState.RUNNING) == (job.state, (await world.run()).state)
    assert "waits: The engine does not answer." == job.progress["message"]


async def test_a_request_that_the_cluster_cannot_satisfy_fails_and_holds_no_slot() -> None:
    world = World(max_running=1)
    world.engine.machines = [Node(2)]
    await world.submit("1", workers=3, priority=9)
    await world.submit("2", workers=2)
    await world.tick(5)
    first = await world.job("1")
    assert (JobState.QUEUED, "The job requests 3 CPUs, and the cluster has 2.") == (
        first.state,
        first.progress["message"],
    )
    assert (await world.job("2")).state is JobState.RUNNING
    await world.tick(4, INFEASIBLE_SECONDS / 3)
    first = await world.job("1")
    assert (JobState.FAILED, "INFEASIBLE_RESOURCES", 0) == (
        first.state,
        first.error_reason,
        len(first.attempts),
    )


async def test_the_log_of_a_launcher_that_could_not_start_is_stored(world: World) -> None:
    job = await ended(world, EngineJob(EngineState.FAILED, "exit", 127), log=b"sh: python: not found\n")
    part = await StoredLogs(world.objects).read(job.name, "driver", 0, ended=True)
    assert b"sh: python: not found\n" == part.data
    assert "python: not found" in job.error_message


async def test_a_launch_is_a_function_of_the_job() -> None:
    """A launch that is repeated after a crash writes the same files and the same command."""
    kind = TrainKind(None, None, None, None, TrainSettings("b", "python", "", 1.0))  # type: ignore[arg-type]
    first, second = (kind.launch(JOB, DETAILS, 2) for _ in range(2))
    assert isinstance(first, Launch)
    assert first == second


async def test_a_lost_attempt_waits_before_the_next_one(world: World) -> None:
    await ended(world, LOST)
    job = await world.job()
    assert "waits before the next attempt" == job.progress["message"]
    assert job.attempts[0].ended_at == AT + SECOND


class Prepared(TrainKind):
    """A kind whose attempts wait for `preparation`, and whose commands get a variable of its own."""

    def __init__(self) -> None:
        super().__init__(None, None, None, None, TrainSettings("b", "python", "", 1.0))  # type: ignore[arg-type]
        self.preparation = Preparation(message="joins the features")
        self.launched: list[Mapping[str, Any]] = []

    async def prepare(self, job: Job, details: Mapping[str, Any]) -> Preparation:
        assert details == DETAILS
        return self.preparation

    def launch(self, job: Job, details: Mapping[str, Any], attempt: int) -> Launch:
        self.launched.append(details)
        return Launch({"spec.json": b"{}"}, ("run",), {"CACHE": "secret"})


async def prepared_world() -> tuple[World, Prepared]:
    world, kind = World(), Prepared()
    world.restart(kind)
    await world.submit()
    await world.tick(3)
    assert not world.engine.started
    assert (await world.job()).progress["message"] == "joins the features"
    return world, kind


async def test_an_attempt_starts_when_its_preparation_is_complete() -> None:
    world, kind = await prepared_world()
    kind.preparation = Preparation({"uri": "s3://b/joined"})
    await world.tick()
    assert kind.launched == [{"uri": "s3://b/joined"}]
    assert world.engine.started["job-1-1"].environment == {"TOKEN": "job-1-1", "CACHE": "secret"}
    assert (await world.job()).state is JobState.RUNNING


async def test_a_failed_preparation_ends_the_job_with_its_reason() -> None:
    world, kind = await prepared_world()
    kind.preparation = Preparation(error=FeaturesNotJoined("WRONG_SPINE: no column\0 'carrier'"))
    await world.tick()
    job = await world.job()
    assert (job.state, job.error_reason) == (JobState.FAILED, "FEATURES_NOT_JOINED")
    assert job.error_message == "WRONG_SPINE: no column\N{REPLACEMENT CHARACTER} 'carrier'"
    assert not world.engine.started


async def test_a_job_can_be_cancelled_while_it_is_prepared() -> None:
    world, _ = await prepared_world()
    await world.jobs.request_cancel(JOB.name)
    await world.tick()
    assert (await world.job()).state is JobState.CANCELLED
