"""How jobs end whose engine or log was lost."""

from __future__ import annotations

from dataclasses import replace

from flywheel_common.clock import ManualClock
from flywheel_common.fakes.objects import MemoryObjectStore
from flywheel_common.ray.errors import EngineUnavailable
from flywheel_job.outcome import Outcome
from flywheel_trainer.fakes.engine import MemoryEngine
from flywheel_trainer.fakes.jobs import MemoryJobs
from flywheel_trainer.fakes.runs import MemoryRuns
from flywheel_trainer.fakes.tracking import MemoryTracking
from flywheel_trainer.jobs.engine import EngineJob, EngineState
from flywheel_trainer.jobs.job import Job, JobState
from flywheel_trainer.jobs.supervision import LaunchSettings, Supervisor
from flywheel_trainer.runs.run import Run, RunState
from tests.support.builders import trainer as build
from tests.support.builders.trainer import AT

JOB = build.job()
LAUNCH = LaunchSettings(
    bucket="b", python="python", environment={}, metrics_address="", cpus_per_worker=1.0, max_running=1
)


class EngineWithoutLogs(MemoryEngine):
    """An engine that lost the logs with its machine, but knows how the job ended."""

    ended = EngineState.SUCCEEDED

    async def state(self, job_id: str) -> EngineJob:
        return EngineJob(self.ended, "exit 1")

    async def log(self, job_id: str) -> bytes:
        raise EngineUnavailable("Ray answered 500.")


async def ended(state: EngineState, outcome: Outcome | None) -> tuple[Job, Run]:
    """JOB and its run after two ticks: the first starts the job, the second finds `state`."""
    tracking, objects, engine = MemoryTracking(), MemoryObjectStore(), EngineWithoutLogs()
    jobs, runs = MemoryJobs(tracking), MemoryRuns(tracking)
    await runs.create_experiment(build.EXPERIMENT, "", b"", AT)
    details = {"uri": "s3://b/ts", "columns": [], "warm_start": None}
    await jobs.create(replace(JOB), details, "", b"", AT)
    supervisor = Supervisor(jobs, engine, objects, LAUNCH, ManualClock(AT))
    await supervisor.tick()
    engine.ended = state
    if outcome is not None:
        await objects.put("jobs/p/job-1/outcome.json", outcome.to_json())
    await supervisor.tick()
    job, run = await jobs.get(JOB.name), await runs.get_run(JOB.run)
    assert job is not None
    assert run is not None
    return job, run


async def test_a_job_ends_although_its_log_is_lost() -> None:
    job, run = await ended(EngineState.SUCCEEDED, Outcome(True))
    assert (JobState.SUCCEEDED, RunState.SUCCEEDED) == (job.state, run.state)


async def test_a_crash_without_a_log_is_reported_with_the_engines_message() -> None:
    job, run = await ended(EngineState.FAILED, None)
    assert (JobState.FAILED, "JOB_CRASHED", RunState.FAILED) == (job.state, job.error_reason, run.state)
    assert "exit 1" in job.error_message


async def test_a_job_that_the_engine_forgot_is_lost_together_with_its_run() -> None:
    job, run = await ended(EngineState.UNKNOWN, None)
    assert (JobState.LOST, "JOB_LOST", RunState.LOST) == (job.state, job.error_reason, run.state)
