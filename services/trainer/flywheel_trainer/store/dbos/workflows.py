"""Pipelines as durable DBOS workflows: after a crash a pipeline continues after its last finished steps.

A workflow is one durable step per step of the graph, all started at once in the graph's order, because DBOS
requires that a repeated workflow starts its steps in the same order. Each waits for the steps that it
needs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from dbos import DBOS, DBOSConfig, DBOSConfiguredInstance, SetWorkflowID, StepOptions

from flywheel_common.errors import FlywheelError, Internal
from flywheel_common.telemetry.logs import get_logger
from flywheel_trainer.jobs.errors import CancelledOnRequest
from flywheel_trainer.jobs.job import JobState
from flywheel_trainer.pipelines.errors import WorkflowFailed
from flywheel_trainer.pipelines.execution import Execution, is_retryable
from flywheel_trainer.pipelines.pipeline_run import PipelineRunName
from flywheel_trainer.pipelines.ports import PipelineStore

log = get_logger(__name__)

CLASS, INSTANCE, WORKFLOW = "flywheel_pipelines", "trainer", "flywheel_pipeline"
RETRIES: StepOptions = {
    "retries_allowed": True,
    "interval_seconds": 1.0,
    "backoff_rate": 1.5,
    "max_attempts": 40,
    "should_retry": is_retryable,
}
"""DBOS waits at most one hour between two attempts, so a step is retried for about a working day."""
DEAD_STATES = frozenset({"ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED"})
MESSAGE_CHARACTERS = 1000


@DBOS.dbos_class(CLASS)
class Workflows(DBOSConfiguredInstance):
    """The pipeline workflow, bound to the code that executes steps."""

    def __init__(
        self,
        execution: Execution,
        store: PipelineStore,
        executor_id: str,
        version: str,
        live_executors: Callable[[], Awaitable[set[str]]],
    ) -> None:
        super().__init__(INSTANCE)
        self._execution, self._store = execution, store
        self._executor_id, self._version, self._live_executors = executor_id, version, live_executors
        self._tasks: set[asyncio.Task[Any]] = set()

    @DBOS.workflow(name=WORKFLOW)
    async def run(self, name: str) -> str:
        """Run all steps of the graph.

        Only steps may have effects: everything else is repeated during recovery.
        """
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        plan = await DBOS.run_step_async(_options("plan"), self._execution.plan, name)
        steps: dict[str, asyncio.Task[str]] = {}
        for step, needs in plan:
            earlier = [steps[needed] for needed in needs]
            steps[step] = asyncio.create_task(
                DBOS.run_step_async(_options(step), self._execute, name, step, earlier)
            )
        try:
            await asyncio.gather(*steps.values(), return_exceptions=True)
        finally:
            for one in steps.values():
                one.cancel()
        _state, message = await DBOS.run_step_async(_options("finish"), self._execution.finish, name)
        return message

    async def _execute(self, name: str, step: str, earlier: list[asyncio.Task[str]]) -> str:
        """The state of the step after its end; waits for the earlier ones first."""
        if earlier:
            await asyncio.wait(earlier)
        try:
            return await self._execution.execute(name, step)
        except CancelledOnRequest:
            return JobState.CANCELLED
        except Exception as error:
            if is_retryable(error) and not _last_try():
                raise
            log.error("pipeline step failed", pipeline_run=name, step=step, exc_info=error)
            return await self._execution.fail(name, step, *_reason_and_message(error))

    async def start_accepted_runs(self, poll_seconds: float) -> None:
        """Start the workflow of every unfinished run, and continue those of replicas that died, forever.

        Starting a workflow that exists changes nothing.
        """
        known: set[PipelineRunName] = set()
        while True:
            try:
                unfinished = await self._store.unfinished()
                await self._take_over()
                for name in unfinished:
                    if name not in known:
                        await self._start(name)
                        known.add(name)
                    await self._fail_if_dead(name)
                known &= set(unfinished)
            except FlywheelError as error:
                log.warning("pipeline runs not started", reason=error.reason, error=error.message)
            await asyncio.sleep(poll_seconds)

    async def _start(self, name: PipelineRunName) -> None:
        with SetWorkflowID(str(name)):
            await DBOS.start_workflow_async(self.run, str(name))

    async def _take_over(self) -> None:
        """Continue the workflows of replicas that are no longer alive.

        Several replicas may do this at once: DBOS puts a workflow into its queue only if the dead replica
        still owns it, and one replica takes it from there. A replica that was only stopped for a while loses
        its workflows, and DBOS refuses the results of their steps.

        Replicas of another version finish their own runs. What they leave is continued by this version from
        the records of the steps: the workflow is deleted, and started anew.
        """
        pending = await DBOS.list_workflows_async(status="PENDING", load_input=False, load_output=False)
        owners = {workflow.executor_id for workflow in pending if workflow.executor_id} - {self._executor_id}
        dead = sorted(owners - await self._live_executors()) if owners else []
        if not dead:
            return
        log.warning("workflows of dead replicas continue here", replicas=dead)
        for workflow in pending:
            if workflow.executor_id in dead and workflow.app_version != self._version:
                await self._begin_anew(workflow.workflow_id, dead)
        # The public resume_workflow would also restart a workflow that a live replica took meanwhile.
        await asyncio.to_thread(DBOS._recover_pending_workflows, dead)  # noqa: SLF001

    async def _begin_anew(self, workflow: str, dead: list[str]) -> None:
        """Start a workflow of another version anew, unless another replica has done so."""
        now = await DBOS.get_workflow_status_async(workflow)
        if now is not None and now.executor_id in dead:
            await DBOS.delete_workflow_async(workflow)
            await self._start(PipelineRunName.parse(workflow))

    async def _fail_if_dead(self, name: PipelineRunName) -> None:
        """Fail a run whose workflow ended before its last step: otherwise it would stay RUNNING forever."""
        status = await DBOS.get_workflow_status_async(str(name))
        if (
            status is None
        ):  # a replica died between deleting the workflow of another version and starting its own
            await self._start(name)
        elif status.status in DEAD_STATES:
            message = f"The workflow ended as {status.status}: {status.error}"[:MESSAGE_CHARACTERS]
            await self._execution.abandon(str(name), WorkflowFailed.reason, message)

    async def stop(self) -> None:
        """Cancel the tasks of all workflows; the next process continues them."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def dbos_workflows(
    execution: Execution,
    store: PipelineStore,
    *,
    dsn: str,
    executor_id: str,
    version: str,
    live_executors: Callable[[], Awaitable[set[str]]],
) -> AsyncIterator[Workflows]:
    """Run DBOS with its own system database at `dsn`.

    `executor_id` is the name of this process, which no other process ever has; `live_executors` are those
    that are alive. `version` is the version of the workflow's code: this process does not continue the
    workflow of another version, but can start it anew.
    """
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
    workflows = Workflows(execution, store, executor_id, version, live_executors)
    DBOS.launch()
    try:
        yield workflows
    finally:
        await workflows.stop()
        # DBOS made its thread pool the default executor of the loop, and shuts it down in destroy.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(thread_name_prefix="trainer"))
        await asyncio.to_thread(DBOS.destroy, workflow_completion_timeout_sec=0)


def _options(step: str) -> StepOptions:
    return {**RETRIES, "name": step}


def _last_try() -> bool:
    status = DBOS.step_status
    if status is None or status.current_attempt is None or status.max_attempts is None:
        return True
    return status.current_attempt + 1 >= status.max_attempts


def _reason_and_message(error: BaseException) -> tuple[str, str]:
    if isinstance(error, FlywheelError):
        return error.reason, error.message
    return Internal.reason, f"{type(error).__name__}: {error}"[:MESSAGE_CHARACTERS]
