"""Pipelines as durable DBOS workflows: after a crash they go on behind the last finished step."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from dbos import DBOS, DBOSConfig, DBOSConfiguredInstance, SetWorkflowID, StepOptions
from dbos import error as dbos_errors

from flywheel_common.errors import FlywheelError
from flywheel_common.telemetry.logs import get_logger
from flywheel_trainer.jobs.job import JobState
from flywheel_trainer.pipelines.pipeline_run import STEPS, PipelineRunName
from flywheel_trainer.pipelines.ports import PipelineStore
from flywheel_trainer.pipelines.steps import Cancelled, Pipeline, Result, is_worth_retrying

log = get_logger(__name__)

CLASS, INSTANCE, WORKFLOW = "flywheel_pipelines", "trainer", "flywheel_pipeline"
RETRIES: StepOptions = {
    "retries_allowed": True,
    "interval_seconds": 1.0,
    "backoff_rate": 1.5,
    "max_attempts": 40,
    "should_retry": is_worth_retrying,
}
"""With the engine's cap of an hour per pause this waits out about a working day."""
DEAD = frozenset({"ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED"})


@DBOS.dbos_class(CLASS)
class Workflows(DBOSConfiguredInstance):
    """The one workflow of this service, bound to its steps."""

    def __init__(self, pipeline: Pipeline, store: PipelineStore) -> None:
        super().__init__(INSTANCE)
        self._pipeline, self._store = pipeline, store
        self._tasks: set[asyncio.Task[Any]] = set()

    @DBOS.workflow(name=WORKFLOW)
    async def run(self, name: str) -> str:
        """All steps in order. Only calls of steps may have effects here: everything else is repeated on recovery."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        state, reason, message = await self._steps(name)
        await DBOS.run_step_async(_options("finish"), self._pipeline.finish, name, state, reason, message)
        return message

    async def _steps(self, name: str) -> tuple[JobState, str, str]:
        seen: dict[str, Result] = {}
        start_rollout = True
        try:
            for step in STEPS:
                if step == "rollout" and not start_rollout:
                    return (
                        JobState.SUCCEEDED,
                        "",
                        f"released as {seen['release']['release']}; no rollout was asked for",
                    )
                seen[step] = await DBOS.run_step_async(
                    _options(step), getattr(self._pipeline, step), name, seen
                )
                if step == "register" and not seen[step]["passed"]:
                    return JobState.SUCCEEDED, "", f"offline gate refused: {seen[step]['message']}"
                if step == "release":
                    start_rollout = seen[step]["start_rollout"]
            return JobState.SUCCEEDED, "", f"{seen['register']['version']} is in {seen['rollout']['rollout']}"
        except Cancelled:
            return JobState.CANCELLED, "CANCELLED", "cancelled on request"
        except dbos_errors.DBOSMaxStepRetriesExceeded as error:
            return JobState.FAILED, *_cause(error.errors[-1] if error.errors else error)
        except Exception as error:
            log.error("pipeline step failed", pipeline_run=name, exc_info=error)
            return JobState.FAILED, *_cause(error)

    async def drive(self, poll_seconds: float) -> None:
        """Start the workflow of every run that was accepted. Starting one that runs already changes nothing."""
        known: set[PipelineRunName] = set()
        while True:
            try:
                unfinished = await self._store.unfinished()
                for name in unfinished:
                    if name not in known:
                        with SetWorkflowID(str(name)):
                            await DBOS.start_workflow_async(self.run, str(name))
                        known.add(name)
                    await self._bury(name)
                known &= set(unfinished)
            except FlywheelError as error:
                log.warning("pipelines wait", reason=error.reason, error=error.message)
            await asyncio.sleep(poll_seconds)

    async def _bury(self, name: PipelineRunName) -> None:
        """A workflow that ended without its last step (which must never happen) must not look alive for ever."""
        status = await DBOS.get_workflow_status_async(str(name))
        if status is not None and status.status in DEAD:
            message = f"The workflow ended as {status.status}: {status.error}"
            await self._pipeline.finish(str(name), JobState.FAILED, "WORKFLOW_FAILED", message[:1000])

    async def stop(self) -> None:
        """Leave every workflow where it is; the next process goes on with it."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def durable(
    pipeline: Pipeline, store: PipelineStore, *, dsn: str, executor_id: str, version: str
) -> AsyncIterator[Workflows]:
    """DBOS with its own system database. `executor_id` names the replica and is stable over restarts, `version` names
    the order of steps: runs of another version are not touched."""
    config: DBOSConfig = {
        "name": "flywheel-trainer",
        "system_database_url": dsn,
        "executor_id": executor_id,
        "application_version": version,
        "log_level": "WARNING",
        "enable_otlp": False,
        "sys_db_pool_size": 5,
    }
    DBOS(config=config)
    workflows = Workflows(pipeline, store)
    DBOS.launch()
    try:
        yield workflows
    finally:
        await workflows.stop()
        # The engine made its own thread pool the loop's, and takes it away with itself.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(thread_name_prefix="trainer"))
        await asyncio.to_thread(DBOS.destroy, workflow_completion_timeout_sec=0)


def _options(step: str) -> StepOptions:
    return {**RETRIES, "name": step}


def _cause(error: BaseException) -> tuple[str, str]:
    if isinstance(error, FlywheelError):
        return error.reason, error.message
    return "INTERNAL", f"{type(error).__name__}: {error}"[:1000]
