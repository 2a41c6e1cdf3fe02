"""Operators that start a stored pipeline or a job, wait for its end, and return its outputs."""

from __future__ import annotations

import hashlib
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from airflow.sdk import BaseOperator, Context
from google.protobuf.json_format import ParseDict
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_exponential

import flywheel as fw
from flywheel_airflow.hook import FlywheelHook
from flywheel_airflow.triggers import FlywheelTrigger
from flywheel_airflow.work import cancellation, check, has_ended, is_given_up, outputs, passes, read
from flywheel_common.errors import FlywheelError
from flywheel_protos.trainer.v1 import trainer_pb2

MAX_TRIES = 1000


class _StartAndWait(BaseOperator):
    """Starts work of the trainer once, waits for its end, and returns its outputs as XCom.

    A task of a DAG run starts one job or pipeline run, however often its worker is lost: its request ids are
    made of the DAG, Airflow's run id, the task and its map index. A further try of the task waits for
    what an earlier one started, also when that has succeeded, and starts anew only if it has failed or was
    cancelled, or if the arguments have changed. A task that is killed or times out cancels its work.
    """

    template_fields: Sequence[str] = ("flywheel_conn_id",)
    ui_color = "#d9ecf7"

    def __init__(
        self,
        *,
        flywheel_conn_id: str = FlywheelHook.default_conn_name,
        poll_interval: timedelta = timedelta(seconds=5),
        longest_outage: timedelta = timedelta(minutes=10),
        deferrable: bool = False,
        **kwargs: Any,
    ) -> None:
        """`longest_outage`: how long the trainer may not answer before the task fails; its work goes on.

        `deferrable`: wait in Airflow's triggerer.
        """
        super().__init__(**kwargs)
        self.flywheel_conn_id = flywheel_conn_id
        self.poll_interval, self.longest_outage = poll_interval, longest_outage
        self.deferrable = deferrable
        self._key = ""

    @abstractmethod
    def start(self, client: fw.SyncClient, request_id: str) -> Any:
        """Start the work, or find what a request of this id started."""

    def execute(self, context: Context) -> dict[str, Any]:
        self._key = request_key(context)
        with FlywheelHook(self.flywheel_conn_id).get_conn() as client:
            work = self._started(client)
            self.log.info("%s is in state %s", work.name, work.state)
            if self.deferrable and not has_ended(work):
                trigger = FlywheelTrigger(
                    work.name,
                    self.flywheel_conn_id,
                    self.poll_interval.total_seconds(),
                    self.longest_outage.total_seconds(),
                )
                self.defer(trigger=trigger, method_name="resume")
            while not has_ended(work):
                time.sleep(self.poll_interval.total_seconds())
                work = self._patient(read, client, work.name)
            return self._ended(client, work)

    def resume(self, context: Context, event: Mapping[str, Any]) -> dict[str, Any]:
        """Continue after the trigger has fired."""
        with FlywheelHook(self.flywheel_conn_id).get_conn() as client:
            return self._ended(client, self._patient(read, client, event["name"]))

    def on_kill(self) -> None:
        """Cancel the work, also if its start was not answered yet."""
        if not self._key:
            return
        with FlywheelHook(self.flywheel_conn_id).get_conn() as client:
            work = self._started(client)
            if not has_ended(work):
                cancellation(client, work.name)

    def _started(self, client: fw.SyncClient) -> Any:
        work = None
        for attempt in range(1, MAX_TRIES + 1):
            try:
                work = self._patient(self.start, client, f"{self._key}/{attempt}")
            except FlywheelError as error:
                if error.reason != "REQUEST_ID_REUSED":
                    raise
                continue
            if not is_given_up(work):
                break
        return work

    def _ended(self, client: fw.SyncClient, work: Any) -> dict[str, Any]:
        check(work)
        return self._patient(outputs, client, work)

    def _patient(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """The result of a call that is repeated while the trainer does not answer."""
        retrying = Retrying(
            retry=retry_if_exception(passes),
            stop=stop_after_delay(self.longest_outage),
            wait=wait_exponential(max=self.poll_interval.total_seconds()),
            reraise=True,
        )
        return retrying(call, *arguments)


class FlywheelPipelineOperator(_StartAndWait):
    """Runs a stored pipeline.

    The XCom has `pipeline_run`, `training_set`, `run`, `model_version`, `release`, `rollout`, `gate_passed`,
    `evidence` (of each register step: `passed` and `findings`), and the outputs of all `steps`.
    """

    template_fields: Sequence[str] = (*_StartAndWait.template_fields, "pipeline", "pipeline_params")

    def __init__(
        self, *, pipeline: str, pipeline_params: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """`pipeline`: its id for the newest version, or `id/versions/3`; `pipeline_params`: of its run."""
        super().__init__(**kwargs)
        self.pipeline = pipeline
        self.pipeline_params = pipeline_params

    def start(self, client: fw.SyncClient, request_id: str) -> Any:
        return client.run_pipeline(self.pipeline, self.pipeline_params, once=request_id)


class FlywheelJobOperator(_StartAndWait):
    """Runs one job: TRAIN, TUNE, EVALUATE, EXPORT or SCORE.

    The XCom has `job`, `run`, `training_set`, `metrics`, `params`, and `artifacts` (`sha256` and `uri` by
    name).
    """

    template_fields: Sequence[str] = (*_StartAndWait.template_fields, "job")

    def __init__(self, *, job: Any, **kwargs: Any) -> None:
        """`job`: a job of the SDK, a Job message, or its JSON form, whose texts are templates."""
        super().__init__(**kwargs)
        self.job = job

    def start(self, client: fw.SyncClient, request_id: str) -> Any:
        job = ParseDict(dict(self.job), trainer_pb2.Job()) if isinstance(self.job, Mapping) else self.job
        return client.submit_job(job, request=request_id)


def request_key(context: Context) -> str:
    """Beginning of the request ids of a task of a DAG run."""
    task = context["ti"]
    parts = (task.dag_id, task.run_id, task.task_id, str(task.map_index))
    return f"airflow/{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()}"
