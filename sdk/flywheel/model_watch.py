"""What happens to a model without its owner: alerts, pipeline runs with their epochs, and rollouts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from flywheel.client import Client
from flywheel_protos.monitor.v1 import monitor_pb2
from flywheel_protos.registry.v1 import model_pb2, registry_pb2
from flywheel_protos.trainer.v1 import trainer_pb2
from flywheel_protos.types.v1 import job_pb2

RUNNING = frozenset({job_pb2.JOB_STATE_QUEUED, job_pb2.JOB_STATE_RUNNING})
EPOCH_METRICS = ("train_loss", "val_loss", "val_auc")
PAGE_SIZE = 50

Kind = Literal["alert", "pipeline", "rollout"]


@dataclass(frozen=True)
class Activity:
    """One line about a resource: an alert, a pipeline run or a rollout. `subject` is its name."""

    kind: Kind
    subject: str
    text: str


class ModelWatch:
    """Reads the activity of a model from monitor, trainer and registry."""

    def __init__(self, client: Client, model: str) -> None:
        self._client = client
        self.model = client.path("models", model)
        self.training: list[str] = []
        """Pipeline runs of the model that were running at the last poll."""
        self.failed: dict[str, str] = {}
        """Pipeline runs that did not succeed, with the reason."""
        self._reported: set[tuple[str, object]] = set()

    async def poll(self) -> list[Activity]:
        """The activity since the last poll, oldest first."""
        return [*await self._alerts(), *await self._pipelines(), *await self._rollouts()]

    async def until_idle(self, report: Callable[[Activity], None], *, pause: float = 0.5) -> None:
        """Polls every `pause` seconds and calls `report`, until no training of the model is running."""
        while True:
            for activity in await self.poll():
                report(activity)
            if not self.training:
                return
            await asyncio.sleep(pause)

    def _once(self, kind: Kind, subject: str, state: object, text: str) -> list[Activity]:
        """One entry when this state of the subject is new, else none."""
        if (subject, state) in self._reported:
            return []
        self._reported.add((subject, state))
        return [Activity(kind, subject, text)]

    async def _alerts(self) -> list[Activity]:
        request = monitor_pb2.ListAlertsRequest(
            parent=self._client.parent, page_size=PAGE_SIZE, filter=f"model={self.model}"
        )
        found: list[Activity] = []
        for alert in reversed((await self._client.monitor.ListAlerts(request)).alerts):
            drifted = ", ".join(f"{f.feature} (PSI {f.psi:.2f})" for f in alert.features[:3])
            text = f"{alert.kind}: {alert.reason}" + (f" ({drifted})" if drifted else "")
            found += self._once("alert", alert.name, "opened", text)
        return found

    async def _pipelines(self) -> list[Activity]:
        request = trainer_pb2.ListPipelineRunsRequest(parent=self._client.parent, page_size=PAGE_SIZE)
        found: list[Activity] = []
        self.training = []
        for run in reversed((await self._client.trainer.ListPipelineRuns(request)).pipeline_runs):
            if run.spec.model != self.model:
                continue
            why = f"because of {run.cause_alert}" if run.cause_alert else "on request"
            found += self._once("pipeline", run.name, "started", f"training started {why}")
            ended = run.state not in RUNNING
            if not ended or (run.name, "ended") not in self._reported:
                found += await self._steps(run)
            if ended:
                state = job_pb2.JobState.Name(run.state).removeprefix("JOB_STATE_")
                outcome = run.error_message or f"ended {state}"
                found += self._once("pipeline", run.name, "ended", f"training {outcome}")
                if run.state != job_pb2.JOB_STATE_SUCCEEDED:
                    self.failed[run.name] = f"{run.error_reason}: {run.error_message}"
            else:
                self.training.append(run.name)
        return found

    async def _steps(self, run: trainer_pb2.PipelineRun) -> list[Activity]:
        found: list[Activity] = []
        for step in run.steps:
            if step.step == "train" and run.run:
                found += await self._epochs(run)
            if step.state == job_pb2.JOB_STATE_SUCCEEDED:
                seconds = (step.ended_at.ToNanoseconds() - step.started_at.ToNanoseconds()) / 1e9
                output = step.output.removeprefix(f"{self._client.parent}/")
                text = f"{step.step}: {output}, {step.message} ({seconds:.1f} s)"
                found += self._once("pipeline", run.name, step.step, text)
        return found

    async def _epochs(self, run: trainer_pb2.PipelineRun) -> list[Activity]:
        request = trainer_pb2.ListMetricPointsRequest(run=run.run, page_size=1000)
        points = await self._client.trainer.ListMetricPoints(request)
        epochs: dict[int, dict[str, float]] = {}
        for key, step, value in zip(points.keys, points.steps, points.values, strict=True):
            if key in EPOCH_METRICS:
                epochs.setdefault(step, {})[key] = value
        found: list[Activity] = []
        for step, metrics in sorted(epochs.items()):
            if len(metrics) == len(EPOCH_METRICS):
                values = ", ".join(f"{name} {metrics[name]:.4f}" for name in EPOCH_METRICS)
                found += self._once("pipeline", run.name, f"epoch {step}", f"epoch {step}: {values}")
        return found

    async def _rollouts(self) -> list[Activity]:
        request = registry_pb2.ListRolloutsRequest(parent=self.model, page_size=PAGE_SIZE)
        found: list[Activity] = []
        for rollout in reversed((await self._client.registry.ListRollouts(request)).rollouts):
            for number, step in enumerate(rollout.history):
                state = model_pb2.RolloutState.Name(step.state).removeprefix("ROLLOUT_STATE_")
                canary = step.state == model_pb2.ROLLOUT_STATE_CANARY
                share = f" {step.challenger_percent:g} %" if canary else ""
                release = rollout.challenger_release.rpartition("/")[2]
                text = f"release {release}: {state}{share}: {step.reason}"
                found += self._once("rollout", rollout.name, number, text)
        return found
