"""Calls about models: policies, training, serving, monitoring."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from flywheel.bulk_predictions import BulkPredictions, Priority
from flywheel.connection import request_id, timestamp
from flywheel.model_jobs import EvaluateJob, ExportJob
from flywheel.paging import list_items
from flywheel.score_job import ScoreJob, score_spec
from flywheel.source_archive import SourceArchive
from flywheel.train_job import PackedJob, TrainJob, pack_job, train_spec
from flywheel_protos.inference.v1 import inference_pb2
from flywheel_protos.monitor.v1 import monitor_pb2
from flywheel_protos.registry.v1 import model_pb2, registry_pb2
from flywheel_protos.trainer.v1 import checkpoint_pb2, trainer_pb2

SOURCE_PART_BYTES = 512 * 1024
UPLOAD_SECONDS = 300.0

AnyJob = TrainJob | EvaluateJob | ExportJob | ScoreJob | trainer_pb2.Job
"""What `run_job` takes; tuning jobs have `tune`."""


class ModelCalls(BulkPredictions):
    """Calls of the registry, the trainer, the inference gateway and the monitor."""

    async def create_model(
        self,
        model: str,
        *,
        description: str = "",
        owner: str = "",
        tags: Mapping[str, str] | None = None,
        gate_policy: model_pb2.GatePolicy | None = None,
        rollout_policy: model_pb2.RolloutPolicy | None = None,
    ) -> model_pb2.Model:
        """Creates a model; without a policy the defaults of the registry apply."""
        created = model_pb2.Model(
            description=description,
            owner=owner,
            tags=tags,
            gate_policy=gate_policy,
            rollout_policy=rollout_policy,
        )
        request = registry_pb2.CreateModelRequest(
            parent=self.parent, model_id=model, model=created, request_id=request_id()
        )
        return (await self.registry.CreateModel(request)).model

    async def set_monitor_policy(
        self, model: str, policy: monitor_pb2.MonitorPolicy
    ) -> monitor_pb2.MonitorPolicy:
        """Replaces the monitoring windows and thresholds of a model; fills in `policy.model`."""
        request = monitor_pb2.SetMonitorPolicyRequest(policy=policy, request_id=request_id())
        request.policy.model = self.path("models", model)
        return (await self.monitor.SetMonitorPolicy(request)).policy

    async def set_retraining_policy(
        self, model: str, policy: trainer_pb2.RetrainingPolicy
    ) -> trainer_pb2.RetrainingPolicy:
        """Replaces the retraining policy of a model; fills in `policy.name`."""
        request = trainer_pb2.SetRetrainingPolicyRequest(policy=policy, request_id=request_id())
        request.policy.name = self.path("retrainingPolicies", model)
        return (await self.trainer.SetRetrainingPolicy(request)).policy

    async def create_experiment(
        self, experiment: str, *, description: str = "", tags: Mapping[str, str] | None = None
    ) -> trainer_pb2.Experiment:
        """Creates an experiment, which groups runs."""
        request = trainer_pb2.CreateExperimentRequest(
            parent=self.parent,
            experiment_id=experiment,
            experiment=trainer_pb2.Experiment(description=description, tags=tags),
            request_id=request_id(),
        )
        return (await self.trainer.CreateExperiment(request)).experiment

    # training

    async def start_pipeline(self, spec: trainer_pb2.PipelineSpec) -> trainer_pb2.PipelineRun:
        """Starts a run of training set → train → evaluate → register → release → rollout."""
        request = trainer_pb2.StartPipelineRunRequest(parent=self.parent, spec=spec, request_id=request_id())
        return (await self.trainer.StartPipelineRun(request)).pipeline_run

    async def wait_pipeline(
        self,
        name: str,
        progress: Callable[[trainer_pb2.PipelineRun], None] | None = None,
    ) -> trainer_pb2.PipelineRun:
        """Waits until a pipeline run has ended; calls `progress` on each change. Raises JobFailedError."""
        watch = self.trainer.WatchPipelineRun(
            trainer_pb2.WatchPipelineRunRequest(name=self.path("pipelineRuns", name))
        )
        return await self.wait(watch, "pipeline_run", progress)

    async def train(
        self,
        spec: trainer_pb2.TrainSpec,
        progress: Callable[[trainer_pb2.Job], None] | None = None,
    ) -> trainer_pb2.Run:
        """Runs one TRAIN job and returns its run. Raises JobFailedError."""
        return await self.run_job(trainer_pb2.Job(train=spec), progress)

    async def run_job(
        self,
        job: AnyJob,
        progress: Callable[[trainer_pb2.Job], None] | None = None,
        *,
        request: str = "",
    ) -> trainer_pb2.Run:
        """Runs one job and returns its run.

        Calls with the same `request` and job run one job. The run of a ScoreJob has the address of the
        predictions in the param `predictions_uri`. Raises SourceError before anything is sent, and
        JobFailedError with the user's traceback.
        """
        submitted = await self.submit_job(job, request=request)
        watch = self.trainer.WatchJob(trainer_pb2.WatchJobRequest(name=submitted.name))
        ended = await self.wait(watch, "job", progress)
        return (await self.trainer.GetRun(trainer_pb2.GetRunRequest(name=ended.run))).run

    async def submit_job(self, job: AnyJob, *, request: str = "") -> trainer_pb2.Job:
        """Submits one job and returns at once; `run_job` says more."""
        message = await self._job_message(job)
        submit = trainer_pb2.SubmitJobRequest(
            parent=self.parent, job=message, request_id=request or request_id()
        )
        return (await self.trainer.SubmitJob(submit)).job

    async def checkpoints(self, job: str) -> list[checkpoint_pb2.Checkpoint]:
        """The complete checkpoints of a job and its trials, as its attempts reported them; oldest first."""
        request = checkpoint_pb2.ListCheckpointsRequest(parent=self.path("jobs", job))
        return (await list_items(self.trainer.ListCheckpoints, request, "checkpoints")).items

    async def _job_message(self, job: AnyJob) -> trainer_pb2.Job:
        """The message of a job, whose source archive is stored."""
        match job:
            case trainer_pb2.Job():
                return job
            case EvaluateJob() | ExportJob():
                return job.message(self.path)
            case ScoreJob():
                return trainer_pb2.Job(score=score_spec(job, self))
            case TrainJob():
                packed = await asyncio.to_thread(pack_job, job)
                if packed.archive is not None:
                    await self.upload_source(packed.archive)
                return trainer_pb2.Job(train=self.code_spec(packed))
        raise TypeError(
            f"{type(job).__name__} is no job: pass a fw.TrainJob, EvaluateJob, ExportJob, ScoreJob."
        )

    async def upload_source(self, archive: SourceArchive) -> None:
        """Stores a source archive; equal archives are stored once."""
        content = archive.content

        async def parts() -> AsyncIterator[trainer_pb2.UploadSourceRequest]:
            target = trainer_pb2.UploadSourceRequest.Target(
                parent=self.parent, sha256=archive.sha256, size_bytes=len(content)
            )
            yield trainer_pb2.UploadSourceRequest(target=target)
            for start in range(0, len(content), SOURCE_PART_BYTES):
                yield trainer_pb2.UploadSourceRequest(data=content[start : start + SOURCE_PART_BYTES])

        await self.trainer.UploadSource(parts(), timeout=UPLOAD_SECONDS)

    def code_spec(self, packed: PackedJob) -> trainer_pb2.TrainSpec:
        """The specification of a packed job."""
        return train_spec(packed, self.path)

    # serving

    async def predict(
        self,
        model: str,
        entity_keys: Mapping[str, Any],
        request_fields: Mapping[str, Any] | None = None,
        *,
        as_of: datetime | None = None,
        subject: str = "",
        prediction_id: str = "",
        priority: Priority = "normal",
        variant: str = "",
        timeout: float | None = None,
    ) -> inference_pb2.PredictResponse:
        """One prediction.

        `subject` is whom the answer is for, by default the entity: one subject gets one release while the
        percentages of a rollout do not change, and is one unit of an experiment. `variant` forces champion,
        challenger or a variant by name, which needs a role that may promote.
        """
        request = self.prediction_request(
            model,
            entity_keys,
            request_fields,
            as_of=as_of,
            subject=subject,
            prediction_id=prediction_id,
            priority=priority,
        )
        metadata = (("flywheel-variant", variant),) if variant else None
        return await self.inference.Predict(request, timeout=timeout, metadata=metadata)

    async def record_outcomes(
        self,
        model: str,
        outcomes: Sequence[tuple[str, float | str, datetime] | tuple[str, float | str, datetime, str]],
        *,
        name: str = "label",
    ) -> int:
        """Sends (prediction id, value, time at which it became known); returns the number accepted.

        A fourth part is the id of the outcome: outcomes of a business metric with ids of their own all count,
        such as several purchases after one prediction. Without it an outcome counts once per prediction.

        A `label` is 0 or 1 for a BINARY model, a number for a REGRESSION model and the class name (str) for a
        MULTICLASS model; other values are outcomes with the name of a business metric.
        """
        accepted = 0
        for start in range(0, len(outcomes), 10_000):
            request = inference_pb2.RecordOutcomeRequest(model=self.path("models", model))
            for prediction, value, moment, *ids in outcomes[start : start + 10_000]:
                outcome = request.outcomes.add(
                    prediction_id=prediction,
                    name=name,
                    event_time=timestamp(moment),
                    outcome_id=ids[0] if ids else "",
                )
                if isinstance(value, str):
                    outcome.class_name = value
                else:
                    outcome.value = value
            accepted += (await self.inference.RecordOutcome(request)).accepted_count
        return accepted

    async def wait_serving(self, model: str, *, within: float = 60.0) -> inference_pb2.ServingStatus:
        """Waits until the gateway serves the production release of the registry and has reproduced its golden
        rows. Raises TimeoutError."""
        name = self.path("models", model)
        async with asyncio.timeout(within):
            while True:
                wanted = (await self.registry.GetModel(registry_pb2.GetModelRequest(name=name))).model
                answer = await self.inference.GetServingStatus(inference_pb2.GetServingStatusRequest())
                for status in answer.models:
                    ready = status.model == name and status.champion_release in status.ready_releases
                    if ready and status.champion_release == wanted.production_release:
                        return status
                await asyncio.sleep(0.1)

    async def wait_monitored(self, *, within: float = 60.0) -> None:
        """Waits until the monitor has counted all predictions and outcomes so far. Raises TimeoutError."""
        request = monitor_pb2.GetIngestStatusRequest(parent=self.parent)
        async with asyncio.timeout(within):
            while True:
                status = await self.monitor.GetIngestStatus(request)
                if not status.lag_records and not status.waiting_predictions:
                    return
                await asyncio.sleep(0.05)

    async def prediction_archive(self, model: str, *, rows: int = 0, within: float = 120.0) -> str:
        """The URI of a model's archived prediction log; waits until it has at least `rows` predictions
        (shadow predictions count). Raises TimeoutError."""
        request = monitor_pb2.GetPredictionArchiveRequest(model=self.path("models", model))
        async with asyncio.timeout(within):
            while (archive := await self.monitor.GetPredictionArchive(request)).rows < rows:
                await asyncio.sleep(0.2)
        return archive.uri

    async def served_at(self, model: str, moment: datetime) -> registry_pb2.ServingSpan | None:
        """What served at a moment of wall time (UTC without a zone), None before the first release."""
        request = registry_pb2.ListServingHistoryRequest(
            parent=self.path("models", model), at=timestamp(moment)
        )
        return next(iter((await self.registry.ListServingHistory(request)).spans), None)

    async def rollback(
        self, model: str, reason: str, *, to: str = "", timeout: float = 30.0
    ) -> registry_pb2.RollbackModelResponse:
        """Serves the previous release again, or the release `to` (a number or a full name).

        Returns when the gateways apply it or the timeout is near. Check `complete`: while it is false, the
        gateways in `unacknowledged_gateways` may serve the former release.
        """
        name = self.path("models", model)
        request = registry_pb2.RollbackModelRequest(
            name=name,
            to_release=f"{name}/releases/{to}" if to.isdigit() else to,
            reason=reason,
            request_id=request_id(),
        )
        return await self.registry.RollbackModel(request, timeout=timeout)
