"""What happens to a model while nobody asks: alerts, pipeline runs with their epochs, rollouts, one line each."""

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
PAGE = 50


@dataclass(frozen=True)
class News:
    """One line for people; `subject` is the resource name it is about."""

    kind: Literal["alert", "pipeline", "rollout"]
    subject: str
    text: str


class ModelWatch:
    """Asks monitor, trainer and registry. `poll` answers what is new since it was asked last, oldest first."""

    def __init__(self, client: Client, model: str) -> None:
        self._client = client
        self.model = client.path("models", model)
        self.training: list[str] = []
        """Pipeline runs of the model that had not ended at the last poll."""
        self.failed: dict[str, str] = {}
        """Pipeline runs that ended badly, with their reason."""
        self._told: set[tuple[str, object]] = set()

    async def poll(self) -> list[News]:
        return [*await self._alerts(), *await self._pipelines(), *await self._rollouts()]

    async def until_idle(self, tell: Callable[[News], None], *, pause: float = 0.5) -> None:
        """Tells what is new, and goes on until no training of the model is under way."""
        while True:
            for news in await self.poll():
                tell(news)
            if not self.training:
                return
            await asyncio.sleep(pause)

    def _once(
        self, kind: Literal["alert", "pipeline", "rollout"], subject: str, state: object, text: str
    ) -> list[News]:
        if (subject, state) in self._told:
            return []
        self._told.add((subject, state))
        return [News(kind, subject, text)]

    async def _alerts(self) -> list[News]:
        request = monitor_pb2.ListAlertsRequest(
            parent=self._client.parent, page_size=PAGE, filter=f"model={self.model}"
        )
        news: list[News] = []
        for alert in reversed((await self._client.monitor.ListAlerts(request)).alerts):
            drifted = ", ".join(f"{f.feature} (PSI {f.psi:.2f})" for f in alert.features[:3])
            news += self._once(
                "alert",
                alert.name,
                "opened",
                f"{alert.kind}: {alert.reason}" + (f" ({drifted})" if drifted else ""),
            )
        return news

    async def _pipelines(self) -> list[News]:
        request = trainer_pb2.ListPipelineRunsRequest(parent=self._client.parent, page_size=PAGE)
        news: list[News] = []
        self.training = []
        for run in reversed((await self._client.trainer.ListPipelineRuns(request)).pipeline_runs):
            if run.spec.model != self.model:
                continue
            why = f"because of {run.cause_alert}" if run.cause_alert else "on request"
            news += self._once("pipeline", run.name, "started", f"training started {why}")
            ended = run.state not in RUNNING
            if not ended or (run.name, "ended") not in self._told:
                news += await self._steps(run)
            if ended:
                outcome = (
                    run.error_message
                    or f"ended {job_pb2.JobState.Name(run.state).removeprefix('JOB_STATE_')}"
                )
                news += self._once("pipeline", run.name, "ended", f"training {outcome}")
                if run.state != job_pb2.JOB_STATE_SUCCEEDED:
                    self.failed[run.name] = f"{run.error_reason}: {run.error_message}"
            else:
                self.training.append(run.name)
        return news

    async def _steps(self, run: trainer_pb2.PipelineRun) -> list[News]:
        news: list[News] = []
        for step in run.steps:
            if step.step == "train" and run.run:
                news += await self._losses(run)
            if step.state == job_pb2.JOB_STATE_SUCCEEDED:
                seconds = (step.ended_at.ToNanoseconds() - step.started_at.ToNanoseconds()) / 1e9
                text = f"{step.step}: {step.output.removeprefix(f'{self._client.parent}/')}, {step.message} ({seconds:.1f} s)"
                news += self._once("pipeline", run.name, step.step, text)
        return news

    async def _losses(self, run: trainer_pb2.PipelineRun) -> list[News]:
        request = trainer_pb2.ListMetricPointsRequest(run=run.run, page_size=1000)
        points = await self._client.trainer.ListMetricPoints(request)
        epochs: dict[int, dict[str, float]] = {}
        for key, step, value in zip(points.keys, points.steps, points.values, strict=True):
            if key in EPOCH_METRICS:
                epochs.setdefault(step, {})[key] = value
        return [
            line
            for step, found in sorted(epochs.items())
            if len(found) == len(EPOCH_METRICS)
            for line in self._once(
                "pipeline",
                run.name,
                f"epoch {step}",
                f"epoch {step}: " + ", ".join(f"{name} {found[name]:.4f}" for name in EPOCH_METRICS),
            )
        ]

    async def _rollouts(self) -> list[News]:
        request = registry_pb2.ListRolloutsRequest(parent=self.model, page_size=PAGE)
        news: list[News] = []
        for rollout in reversed((await self._client.registry.ListRollouts(request)).rollouts):
            for number, step in enumerate(rollout.history):
                state = model_pb2.RolloutState.Name(step.state).removeprefix("ROLLOUT_STATE_")
                share = (
                    f" {step.challenger_percent:g} %" if step.state == model_pb2.ROLLOUT_STATE_CANARY else ""
                )
                release = rollout.challenger_release.rpartition("/")[2]
                text = f"release {release}: {state}{share}: {step.reason}"
                news += self._once("rollout", rollout.name, number, text)
        return news
