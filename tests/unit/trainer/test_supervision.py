"""Jobs whose engine lost something: what is written down of their end."""

from __future__ import annotations

from datetime import UTC, datetime

from flywheel_common.clock import ManualClock
from flywheel_common.errors import Unavailable
from flywheel_common.fakes.objects import MemoryObjectStore
from flywheel_trainer.fakes.engine import MemoryEngine
from flywheel_trainer.fakes.jobs import MemoryJobs
from flywheel_trainer.fakes.runs import MemoryRuns
from flywheel_trainer.fakes.tracking import MemoryTracking
from flywheel_trainer.jobs.engine import EngineJob, EngineState
from flywheel_trainer.jobs.job import Job, JobName, JobState
from flywheel_trainer.jobs.supervision import Launch, Supervisor
from flywheel_trainer.jobs.train_spec import TrainSpec
from flywheel_trainer.recipes.outcome import Outcome
from flywheel_trainer.runs.run import Experiment, ExperimentName, RunName

AT = datetime(2013, 4, 1, tzinfo=UTC)
JOB = JobName("p", "job-1")


class ForgetfulEngine(MemoryEngine):
    """Its machine took the texts with it: it knows how a job ended, and cannot read what it printed."""

    ended = EngineState.SUCCEEDED

    async def state(self, job_id: str) -> EngineJob:
        return EngineJob(self.ended, "exit 1")

    async def log(self, job_id: str) -> bytes:
        raise Unavailable("Ray answered 500.", reason="ENGINE_UNAVAILABLE")


async def ended(state: EngineState, outcome: Outcome | None) -> Job:
    """JOB after two looks of the supervisor: one starts it, one finds it in `state`."""
    tracking, objects, engine = MemoryTracking(), MemoryObjectStore(), ForgetfulEngine()
    jobs = MemoryJobs(tracking)
    await MemoryRuns(tracking).create_experiment(Experiment(ExperimentName("p", "late")), "", b"", AT)
    details = {"uri": "s3://b/ts", "columns": [], "warm_start": None}
    await jobs.create(Job(JOB, TrainSpec("late", "ts"), RunName("p", "run-1")), details, "", b"", AT)
    launch = Launch("b", "python", {}, "", 1.0, 1)
    supervisor = Supervisor(jobs, engine, objects, launch, ManualClock(AT))
    await supervisor.tick()
    engine.ended = state
    if outcome is not None:
        await objects.put("jobs/p/job-1/outcome.json", outcome.to_json())
    await supervisor.tick()
    job = await jobs.get(JOB)
    assert job is not None
    return job


async def test_a_text_that_is_lost_keeps_no_job_open() -> None:
    job = await ended(EngineState.SUCCEEDED, Outcome(True))
    assert JobState.SUCCEEDED == job.state


async def test_a_crash_is_told_without_the_text_that_is_lost() -> None:
    job = await ended(EngineState.FAILED, None)
    assert (JobState.FAILED, "JOB_CRASHED") == (job.state, job.error_reason)
    assert "exit 1" in job.error_message
