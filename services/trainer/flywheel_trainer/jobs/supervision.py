"""From a queued row to an ended one: submits jobs, watches them, and believes only the outcome they left.

One replica supervises at a time. Everything is told by rows, the engine and the outcome object, so whoever comes
next goes on where the last one stopped: jobs are known to the engine by their own id.
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
from flywheel_trainer.jobs.engine import Engine, EngineJob, EngineState
from flywheel_trainer.jobs.files import ARTIFACTS, LOG, OUTCOME, _key
from flywheel_trainer.jobs.job import Job, JobName, JobState
from flywheel_trainer.jobs.ports import JobStore
from flywheel_trainer.recipes.outcome import Outcome
from flywheel_trainer.recipes.tabular.spec import Column, TabularSpec, WarmStart

log = get_logger(__name__)

LOG_TAIL_BYTES = 4000
"""How long what keeps a log may take to answer: whoever watches a job is told of it also while that hangs."""
ENDED_ON_ENGINE = frozenset(
    {EngineState.SUCCEEDED, EngineState.FAILED, EngineState.STOPPED, EngineState.UNKNOWN}
)


@dataclass(frozen=True)
class Launch:
    """How jobs are started: interpreter, environment with the credentials, where files go and live metrics."""

    bucket: str
    python: str
    environment: Mapping[str, str]
    metrics_address: str
    cpus_per_worker: float
    max_running: int


class Supervisor:
    """Moves every active job one step at each `tick`."""

    def __init__(
        self, store: JobStore, engine: Engine, objects: ObjectStore, launch: Launch, clock: Clock
    ) -> None:
        self._store, self._engine, self._objects = store, engine, objects
        self._launch, self._clock = launch, clock

    async def run(self, poll_seconds: float) -> None:
        """Tick for ever; an outage of a dependency delays, and ends nothing."""
        while True:
            try:
                await self.tick()
            except FlywheelError as error:
                log.warning("supervision waits", reason=error.reason, error=error.message)
            await asyncio.sleep(poll_seconds)

    async def tick(self) -> None:
        """One look at every active job, highest priority first."""
        jobs = await self._store.active()
        running = sum(job.state is JobState.RUNNING for job, _ in jobs)
        for job, details in jobs:
            try:
                if job.cancel_requested:
                    await self._cancel(job)
                elif job.state is JobState.RUNNING:
                    await self._look(job)
                elif running < self._launch.max_running:
                    running += 1
                    await self._start(job, details)
            except FlywheelError as error:
                log.warning("job waits", job=str(job.name), reason=error.reason, error=error.message)
                await self._store.waits(job.name, f"waits: {error.message}")

    async def _start(self, job: Job, details: Mapping[str, Any]) -> None:
        spec = self._spec(job, details)
        await self._objects.put(_key(job.name, "spec.json"), spec.to_json())
        command = f"exec {self._launch.python} -m flywheel_trainer.recipes.tabular {self._uri(job.name, 'spec.json')}"
        await self._engine.submit(job.name.job, command, self._launch.environment)
        await self._store.started(job.name, self._clock.now())
        log.info("job started", job=str(job.name))

    async def _look(self, job: Job) -> None:
        known = await self._engine.state(job.name.job)
        if known.state not in ENDED_ON_ENGINE:
            epochs = await self._store.progress(job.run)
            progress = {"done": epochs, "total": job.spec.hyperparameters.epochs, "unit": "epoch"}
            await self._store.alive(job.name, progress, self._clock.now())
            return
        outcome = await self._outcome(job.name)
        if outcome is not None:
            await self._end(job, JobState.SUCCEEDED if outcome.succeeded else JobState.FAILED, outcome)
        elif known.state is EngineState.UNKNOWN:
            message = "The compute engine no longer knows the job, and it left no outcome: it was lost with its machine."
            await self._end(job, JobState.LOST, Outcome(False, "JOB_LOST", message))
        else:
            await self._end(
                job, JobState.FAILED, Outcome(False, "JOB_CRASHED", await self._cause(job, known))
            )

    async def _cancel(self, job: Job) -> None:
        known = await self._engine.state(job.name.job)
        if known.state in ENDED_ON_ENGINE:
            outcome = await self._outcome(job.name)
            if outcome is not None and outcome.succeeded:
                await self._end(job, JobState.SUCCEEDED, outcome)
            else:
                await self._end(job, JobState.CANCELLED, Outcome(False, "CANCELLED", "Cancelled on request."))
        else:
            await self._engine.stop(job.name.job)

    async def _end(self, job: Job, state: JobState, outcome: Outcome) -> None:
        text = await self._text(job.name)
        if text:
            await self._objects.put(_key(job.name, LOG), text)
        if await self._store.end(job.name, state, outcome, self._clock.now()):
            log.info("job ended", job=str(job.name), state=str(state), reason=outcome.error_reason)

    async def _outcome(self, name: JobName) -> Outcome | None:
        try:
            return Outcome.from_json(await self._objects.get(_key(name, OUTCOME)))
        except (NotFound, ValueError):
            return None

    async def _cause(self, job: Job, known: EngineJob) -> str:
        tail = (await self._text(job.name))[-LOG_TAIL_BYTES:].decode(errors="replace").strip()
        return f"The job's process ended without an outcome. {known.message[:500]}\n{tail[-1500:]}".strip()

    async def _text(self, name: JobName) -> bytes:
        """What an ended job printed. A text that is lost with its machine keeps no job open."""
        try:
            return await self._engine.log(name.job)
        except Unavailable as error:
            log.warning("log not kept", job=str(name), error=error.message)
            return b""

    def _uri(self, name: JobName, file: str) -> str:
        return f"s3://{self._launch.bucket}/{_key(name, file)}"

    def _spec(self, job: Job, details: Mapping[str, Any]) -> TabularSpec:
        warm = details["warm_start"]
        return TabularSpec(
            job=str(job.name),
            run=str(job.run),
            training_set=job.spec.training_set,
            uri=details["uri"],
            columns=tuple(Column(name, data_type) for name, data_type in details["columns"]),
            output_uri=f"s3://{self._launch.bucket}/{ARTIFACTS}",
            outcome_uri=self._uri(job.name, OUTCOME),
            trainer_address=self._launch.metrics_address,
            workers=job.spec.workers,
            gpus_per_worker=job.spec.gpus_per_worker,
            cpus_per_worker=self._launch.cpus_per_worker,
            hyperparameters=job.spec.hyperparameters,
            warm_start=WarmStart(**warm) if warm else None,
        )
