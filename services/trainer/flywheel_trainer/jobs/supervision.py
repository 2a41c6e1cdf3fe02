"""Moves jobs from QUEUED to their end: submits them to the engine, checks them, and reads their outcomes.

One replica supervises at a time. All state is in the job rows, the engine and the outcome objects, so another
replica can continue at any point: the engine knows a job by the job's own id.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flywheel_common.clock import Clock
from flywheel_common.errors import FlywheelError, NotFound, Unavailable
from flywheel_common.storage.objects import ObjectStore
from flywheel_common.telemetry.logs import get_logger
from flywheel_job.artifacts import ARTIFACTS
from flywheel_job.launch import Column, DataSet, LaunchSpec, Resources
from flywheel_job.outcome import Outcome
from flywheel_job.recipes.tabular.spec import CHECK, EXPORT, TRAIN, TabularSpec, WarmStart
from flywheel_trainer.jobs.engine import ENDED_ON_ENGINE, Engine, EngineJob, EngineState
from flywheel_trainer.jobs.errors import CancelledOnRequest, JobCrashed, JobLost
from flywheel_trainer.jobs.files import CHECKPOINTS, LOG, OUTCOME, SPEC, file_key
from flywheel_trainer.jobs.job import Job, JobName, JobState
from flywheel_trainer.jobs.ports import JobStore

log = get_logger(__name__)

LOG_TAIL_BYTES = 4000
DRIVER = "flywheel_job"
"""Module that Ray starts for a job."""


@dataclass(frozen=True)
class LaunchSettings:
    """How jobs are started."""

    bucket: str
    python: str
    """Interpreter on the machines of the cluster."""
    environment: Mapping[str, str]
    """Environment of the job, with the credentials for S3."""
    metrics_address: str
    """host:port of this service for live metrics."""
    cpus_per_worker: float
    max_running: int


class Supervisor:
    """Moves every active job one step at each `tick`."""

    def __init__(
        self, store: JobStore, engine: Engine, objects: ObjectStore, launch: LaunchSettings, clock: Clock
    ) -> None:
        self._store, self._engine, self._objects = store, engine, objects
        self._launch, self._clock = launch, clock

    async def run(self, poll_seconds: float) -> None:
        """Tick forever; the outage of a dependency delays jobs and ends none."""
        while True:
            try:
                await self.tick()
            except FlywheelError as error:
                log.warning("jobs not supervised", reason=error.reason, error=error.message)
            await asyncio.sleep(poll_seconds)

    async def tick(self) -> None:
        """Check every active job once, highest priority first."""
        jobs = await self._store.active()
        running = sum(job.state is JobState.RUNNING for job, _ in jobs)
        for job, details in jobs:
            try:
                if job.cancel_requested:
                    await self._cancel(job)
                elif job.state is JobState.RUNNING:
                    await self._check(job)
                elif running < self._launch.max_running:
                    running += 1
                    await self._start(job, details)
            except FlywheelError as error:
                log.warning("job waits", job=str(job.name), reason=error.reason, error=error.message)
                await self._store.set_waiting(job.name, f"waits: {error.message}")

    async def _start(self, job: Job, details: Mapping[str, Any]) -> None:
        spec = self._spec(job, details)
        await self._objects.put(file_key(job.name, SPEC), spec.to_json())
        command = f"exec {self._launch.python} -m {DRIVER} {self._uri(job.name, SPEC)}"
        await self._engine.submit(job.name.job, command, self._launch.environment)
        await self._store.mark_started(job.name, self._clock.now())
        log.info("job started", job=str(job.name))

    async def _check(self, job: Job) -> None:
        known = await self._engine.state(job.name.job)
        if known.state not in ENDED_ON_ENGINE:
            epochs = await self._store.epochs_done(job.run)
            progress = {"done": epochs, "total": job.spec.hyperparameters.epochs, "unit": "epoch"}
            await self._store.heartbeat(job.name, progress, self._clock.now())
            return
        outcome = await self._outcome(job.name)
        if outcome is not None:
            await self._end(job, JobState.SUCCEEDED if outcome.succeeded else JobState.FAILED, outcome)
        elif known.state is EngineState.UNKNOWN:
            lost = JobLost(
                "The compute engine no longer knows the job, and it left no outcome: its machine was lost."
            )
            await self._end(job, JobState.LOST, Outcome.failed(lost))
        else:
            crashed = JobCrashed(await self._crash_message(job, known))
            await self._end(job, JobState.FAILED, Outcome.failed(crashed))

    async def _cancel(self, job: Job) -> None:
        known = await self._engine.state(job.name.job)
        if known.state not in ENDED_ON_ENGINE:
            await self._engine.stop(job.name.job)
            return
        outcome = await self._outcome(job.name)
        if outcome is not None and outcome.succeeded:
            await self._end(job, JobState.SUCCEEDED, outcome)
        else:
            cancelled = CancelledOnRequest("Cancelled on request.")
            await self._end(job, JobState.CANCELLED, Outcome.failed(cancelled))

    async def _end(self, job: Job, state: JobState, outcome: Outcome) -> None:
        text = await self._log_text(job.name)
        if text:
            await self._objects.put(file_key(job.name, LOG), text)
        if await self._store.end(job.name, state, outcome, self._clock.now()):
            log.info("job ended", job=str(job.name), state=str(state), reason=outcome.error_reason)

    async def _outcome(self, name: JobName) -> Outcome | None:
        try:
            return Outcome.from_json(await self._objects.get(file_key(name, OUTCOME)))
        except (NotFound, ValueError):
            return None

    async def _crash_message(self, job: Job, known: EngineJob) -> str:
        tail = (await self._log_text(job.name))[-LOG_TAIL_BYTES:].decode(errors="replace").strip()
        return f"The job's process ended without an outcome. {known.message[:500]}\n{tail[-1500:]}".strip()

    async def _log_text(self, name: JobName) -> bytes:
        """The log of an ended job. A job can end without it: the log may be lost with its machine."""
        try:
            return await self._engine.log(name.job)
        except Unavailable as error:
            log.warning("job log not stored", job=str(name), error=error.message)
            return b""

    def _uri(self, name: JobName, file: str) -> str:
        return f"s3://{self._launch.bucket}/{file_key(name, file)}"

    def _spec(self, job: Job, details: Mapping[str, Any]) -> LaunchSpec:
        warm = details["warm_start"]
        columns = tuple(Column(name, data_type) for name, data_type in details["columns"])
        recipe = TabularSpec(
            training_set=job.spec.training_set,
            uri=details["uri"],
            columns=columns,
            workers=job.spec.workers,
            hyperparameters=job.spec.hyperparameters,
            warm_start=WarmStart(**warm) if warm else None,
        )
        return LaunchSpec(
            job=str(job.name),
            run=str(job.run),
            params=recipe.params(),
            data={"train": DataSet(details["uri"], job.spec.training_set, columns)},
            output_uri=f"s3://{self._launch.bucket}/{ARTIFACTS}",
            outcome_uri=self._uri(job.name, OUTCOME),
            checkpoint_uri=self._uri(job.name, CHECKPOINTS),
            trainer_address=self._launch.metrics_address,
            workers=job.spec.workers,
            resources=Resources(cpus=self._launch.cpus_per_worker, gpus=job.spec.gpus_per_worker),
            seed=job.spec.hyperparameters.seed,
            check=CHECK,
            function=TRAIN,
            export=EXPORT,
        )
