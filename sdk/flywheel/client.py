"""The typed async client: one object, five services, messages in and out.

`Client` opens a channel per service; `client.feature`, `.registry`, `.trainer`, `.inference` and `.monitor` are the
generated stubs whose errors come as `FlywheelError` with a reason. What needs more than one call, or packed columns,
has a method here.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from flywheel.errors import JobFailedError
from flywheel.tables import to_table
from flywheel_common.error_details import from_rpc_error
from flywheel_common.grpc_channel import channel
from flywheel_common.value import from_python
from flywheel_protos.feature.v1 import (
    definitions_pb2,
    feature_pb2,
    feature_pb2_grpc,
    training_set_pb2,
)
from flywheel_protos.inference.v1 import inference_pb2, inference_pb2_grpc
from flywheel_protos.monitor.v1 import monitor_pb2, monitor_pb2_grpc
from flywheel_protos.registry.v1 import model_pb2, registry_pb2, registry_pb2_grpc
from flywheel_protos.trainer.v1 import trainer_pb2, trainer_pb2_grpc
from flywheel_protos.types.v1 import job_pb2

PORTS = {
    "feature": 7101,
    "registry": 7102,
    "trainer": 7103,
    "inference": 7104,
    "monitor": 7105,
}
STUBS: dict[str, Callable[[grpc.aio.Channel], Any]] = {
    "feature": feature_pb2_grpc.FeatureServiceStub,
    "registry": registry_pb2_grpc.RegistryServiceStub,
    "trainer": trainer_pb2_grpc.TrainerServiceStub,
    "inference": inference_pb2_grpc.InferenceServiceStub,
    "monitor": monitor_pb2_grpc.MonitorServiceStub,
}
ENDED = {
    job_pb2.JOB_STATE_SUCCEEDED,
    job_pb2.JOB_STATE_FAILED,
    job_pb2.JOB_STATE_CANCELLED,
    job_pb2.JOB_STATE_LOST,
}
J = TypeVar("J")


class Service:
    """A stub whose unary calls raise FlywheelError instead of grpc.RpcError; response streams are handed on as they are."""

    def __init__(self, stub: Any) -> None:
        self._stub = stub

    def __getattr__(self, method: str) -> Any:
        call = getattr(self._stub, method)

        def start(request: Any, *, timeout: float | None = None) -> Any:
            started = call(request, timeout=timeout)
            return _answer(started) if isinstance(started, grpc.aio.UnaryUnaryCall) else started

        return start


async def _answer(call: Any) -> Any:
    try:
        return await call
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error


class Client:
    """Use as `async with Client() as fw:`. Addresses come from the arguments, then FLYWHEEL_<SERVICE>_ADDRESS,
    then the ports of a local platform. `project` scopes every short name."""

    feature: Service
    registry: Service
    trainer: Service
    inference: Service
    monitor: Service

    def __init__(self, project: str = "default", *, timeout: float = 30.0, **addresses: str) -> None:
        self.project, self.parent = project, f"projects/{project}"
        self._timeout = timeout
        self._addresses = {
            name: addresses.get(name)
            or os.environ.get(f"FLYWHEEL_{name.upper()}_ADDRESS", f"127.0.0.1:{port}")
            for name, port in PORTS.items()
        }
        self._channels: list[grpc.aio.Channel] = []

    async def __aenter__(self) -> Self:
        for name, make in STUBS.items():
            opened = channel(
                self._addresses[name], client_name="flywheel-sdk", default_timeout_seconds=self._timeout
            )
            self._channels.append(opened)
            setattr(self, name, Service(make(opened)))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for opened in self._channels:
            await opened.close()

    def path(self, collection: str, name: str) -> str:
        """`projects/{project}/{collection}/{name}`, or the name itself when it is already a full one."""
        return name if name.startswith("projects/") else f"{self.parent}/{collection}/{name}"

    def full(self, name: str) -> str:
        """`views/facts` with the project before it; a full name as it is."""
        return name if name.startswith("projects/") else f"{self.parent}/{name}"

    # features

    async def apply(
        self, definitions: definitions_pb2.Definitions, *, plan: bool = False
    ) -> feature_pb2.ApplyDefinitionsResponse:
        """Applies (or with `plan` only compares) definitions."""
        return await self.feature.ApplyDefinitions(
            feature_pb2.ApplyDefinitionsRequest(
                parent=self.parent,
                definitions=definitions,
                validate_only=plan,
                request_id=request_id(),
            )
        )

    async def delete(self, *names: str) -> feature_pb2.ApplyDefinitionsResponse:
        """Deletes definitions by name: `views/facts`, `featureSets/late`, …; what reads them must go in the same call."""
        return await self.feature.ApplyDefinitions(
            feature_pb2.ApplyDefinitionsRequest(
                parent=self.parent, delete_names=[self.full(n) for n in names], request_id=request_id()
            )
        )

    async def lineage(self, name: str) -> feature_pb2.GetLineageResponse:
        """What feeds `views/facts`, `models/late/versions/7`, … and what reads it."""
        return await self.feature.GetLineage(
            feature_pb2.GetLineageRequest(name=self.full(name), parent=self.parent)
        )

    async def push(
        self,
        target: str,
        rows: Any,
        schema: Mapping[str, int] | None = None,
        *,
        ids: Sequence[str] = (),
        to: int = feature_pb2.PUSH_TARGET_UNSPECIFIED,
    ) -> feature_pb2.PushFeaturesResponse:
        """Sends rows to a stream source, or to a batch view when `target` begins with `views/` (then `to` may say online or
        offline only)."""
        return await self.feature.PushFeatures(self.push_request(target, rows, schema, ids=ids, to=to))

    def push_request(
        self,
        target: str,
        rows: Any,
        schema: Mapping[str, int] | None = None,
        *,
        ids: Sequence[str] = (),
        to: int = feature_pb2.PUSH_TARGET_UNSPECIFIED,
    ) -> feature_pb2.PushFeaturesRequest:
        """One push, for `push_stream`."""
        name = f"{self.parent}/{target}" if target.startswith("views/") else self.path("sources", target)
        return feature_pb2.PushFeaturesRequest(
            target=name,
            rows=to_table(rows, schema),
            event_ids=ids,
            push_target=to,  # type: ignore[arg-type]
        )

    async def push_stream(
        self, pushes: AsyncIterable[feature_pb2.PushFeaturesRequest]
    ) -> AsyncIterator[feature_pb2.StreamPushFeaturesResponse]:
        """An answer per push, in order, once its rows are durable; a refused one has its `error` set and harms no other. The
        service takes more pushes only as fast as it answers."""

        async def wrapped() -> AsyncIterator[feature_pb2.StreamPushFeaturesRequest]:
            async for push in pushes:
                yield feature_pb2.StreamPushFeaturesRequest(push=push)

        try:
            async for answer in self.feature.StreamPushFeatures(wrapped()):
                yield answer
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error

    async def wait_applied(
        self, offsets: Sequence[feature_pb2.AppliedOffset], *, within: float = 60.0
    ) -> None:
        """Returns when pushed rows show online, that is when every position is applied. Raises TimeoutError."""
        wanted = {(o.source, o.partition): o.next_offset for o in offsets}
        async with asyncio.timeout(within):
            while wanted:
                answer = await self.feature.GetFreshness(feature_pb2.GetFreshnessRequest(parent=self.parent))
                for fresh in answer.freshness:
                    for applied in fresh.applied:
                        key = (applied.source or fresh.name, applied.partition)
                        if applied.next_offset >= wanted.get(key, float("inf")):
                            del wanted[key]
                if wanted:
                    await asyncio.sleep(0.003)

    async def online_features(
        self,
        feature_set: str,
        entities: Any,
        request_fields: Any = None,
        *,
        as_of: datetime | None = None,
        readable: bool = False,
    ) -> feature_pb2.GetOnlineFeaturesResponse:
        """Feature values of one or many entities; `entities` is a frame or a dict join key → values."""
        request = feature_pb2.GetOnlineFeaturesRequest(
            feature_set=self.path("featureSets", feature_set),
            entities=to_table(entities),
            layout=feature_pb2.ANSWER_LAYOUT_ROWS if readable else feature_pb2.ANSWER_LAYOUT_COLUMNS,
        )
        if request_fields is not None:
            request.request_fields.CopyFrom(to_table(request_fields))
        if as_of is not None:
            request.as_of.FromDatetime(as_of)
        return await self.feature.GetOnlineFeatures(request)

    async def materialize(
        self,
        view: str,
        progress: Callable[[feature_pb2.Job], None] | None = None,
        *,
        start: datetime | None = None,
        end: datetime | None = None,
        rows_per_second: int = 0,
    ) -> feature_pb2.Job:
        """Writes a batch view's rows online and waits for the end: with `start` those of a range of event time, else what the
        view has not seen yet."""
        request = feature_pb2.MaterializeViewRequest(
            view=self.path("views", view), request_id=request_id(), rows_per_second=rows_per_second
        )
        if start is not None:
            request.start_time.FromDatetime(start)
        if end is not None:
            request.end_time.FromDatetime(end)
        return await self._feature_job((await self.feature.MaterializeView(request)).job, progress)

    async def rebuild_online_store(
        self, progress: Callable[[feature_pb2.Job], None] | None = None
    ) -> feature_pb2.Job:
        """Fills an online store that lost its contents from the archives on S3, and waits for the end."""
        request = feature_pb2.RebuildOnlineStoreRequest(parent=self.parent, request_id=request_id())
        return await self._feature_job((await self.feature.RebuildOnlineStore(request)).job, progress)

    async def erase_entity(
        self,
        entity: str,
        join_keys: Mapping[str, Any],
        progress: Callable[[feature_pb2.Job], None] | None = None,
    ) -> feature_pb2.EraseReport:
        """Erases one entity everywhere and waits for the report."""
        request = feature_pb2.EraseEntityRequest(
            entity=self.path("entities", entity),
            join_keys={k: from_python(v) for k, v in join_keys.items()},
            request_id=request_id(),
        )
        return (await self._feature_job((await self.feature.EraseEntity(request)).job, progress)).erase_report

    async def _feature_job(
        self, job: feature_pb2.Job, progress: Callable[[feature_pb2.Job], None] | None
    ) -> feature_pb2.Job:
        watched = self.feature.WatchJob(feature_pb2.WatchJobRequest(name=job.name))
        ended: feature_pb2.Job = await self._wait(watched, "job", progress)
        return ended

    async def build_training_set(
        self,
        feature_set: str,
        spine: training_set_pb2.Spine,
        *,
        mode: int = training_set_pb2.JOIN_MODE_POINT_IN_TIME,
        full_feature_names: bool = True,
        compute: int = training_set_pb2.COMPUTE_UNSPECIFIED,
        progress: Callable[[feature_pb2.Job], None] | None = None,
    ) -> training_set_pb2.TrainingSet:
        """Joins a spine with a feature set and waits for the manifest.

        `full_feature_names=False` calls columns `feature` instead of `view__feature`: for reading them elsewhere, as models
        are trained on the full names. `compute`: where it is joined, by its size unless you say.
        """
        request = feature_pb2.BuildTrainingSetRequest(
            parent=self.parent,
            feature_set=self.path("featureSets", feature_set),
            spine=spine,
            mode=mode,  # type: ignore[arg-type]
            short_feature_names=not full_feature_names,
            compute=compute,  # type: ignore[arg-type]
            request_id=request_id(),
        )
        job = (await self.feature.BuildTrainingSet(request)).job
        job = await self._wait(
            self.feature.WatchJob(feature_pb2.WatchJobRequest(name=job.name)),
            "job",
            progress,
        )
        return (
            await self.feature.GetTrainingSet(feature_pb2.GetTrainingSetRequest(name=job.training_set))
        ).training_set

    async def check_skew(self, predictions_uri: str, *, sample_limit: int = 0) -> feature_pb2.SkewReport:
        """Recomputes logged online answers offline and waits for the report."""
        request = feature_pb2.CheckSkewRequest(
            parent=self.parent,
            predictions_uri=predictions_uri,
            sample_limit=sample_limit,
            request_id=request_id(),
        )
        job = (await self.feature.CheckSkew(request)).job
        return (
            await self._wait(self.feature.WatchJob(feature_pb2.WatchJobRequest(name=job.name)), "job")
        ).skew_report

    async def prediction_archive(self, model: str, *, rows: int = 0, within: float = 120.0) -> str:
        """Address of a model's archived prediction log, once it holds at least `rows` answers (shadow answers count).
        Raises TimeoutError."""
        request = monitor_pb2.GetPredictionArchiveRequest(model=self.path("models", model))
        async with asyncio.timeout(within):
            while (archive := await self.monitor.GetPredictionArchive(request)).rows < rows:
                await asyncio.sleep(0.2)
        return archive.uri

    # models and the rules that decide about them; `fields` are those of the message named in each docstring

    async def create_model(self, model: str, **fields: Any) -> model_pb2.Model:
        """registry.v1.Model: gate policy, rollout policy, description."""
        request = registry_pb2.CreateModelRequest(
            parent=self.parent, model_id=model, model=model_pb2.Model(**fields), request_id=request_id()
        )
        return (await self.registry.CreateModel(request)).model

    async def set_monitor_policy(self, model: str, **fields: Any) -> monitor_pb2.MonitorPolicy:
        """monitor.v1.MonitorPolicy: windows, thresholds."""
        policy = monitor_pb2.MonitorPolicy(model=self.path("models", model), **fields)
        request = monitor_pb2.SetMonitorPolicyRequest(policy=policy, request_id=request_id())
        return (await self.monitor.SetMonitorPolicy(request)).policy

    async def set_retraining_policy(self, model: str, **fields: Any) -> trainer_pb2.RetrainingPolicy:
        """trainer.v1.RetrainingPolicy: pipeline, triggers, cooldown, budget."""
        policy = trainer_pb2.RetrainingPolicy(name=self.path("retrainingPolicies", model), **fields)
        request = trainer_pb2.SetRetrainingPolicyRequest(policy=policy, request_id=request_id())
        return (await self.trainer.SetRetrainingPolicy(request)).policy

    async def create_experiment(self, experiment: str, **fields: Any) -> trainer_pb2.Experiment:
        """trainer.v1.Experiment: description, tags."""
        request = trainer_pb2.CreateExperimentRequest(
            parent=self.parent,
            experiment_id=experiment,
            experiment=trainer_pb2.Experiment(**fields),
            request_id=request_id(),
        )
        return (await self.trainer.CreateExperiment(request)).experiment

    # training

    async def start_pipeline(self, spec: trainer_pb2.PipelineSpec) -> trainer_pb2.PipelineRun:
        """Starts training set → train → evaluate → register → release → rollout."""
        request = trainer_pb2.StartPipelineRunRequest(parent=self.parent, spec=spec, request_id=request_id())
        return (await self.trainer.StartPipelineRun(request)).pipeline_run

    async def wait_pipeline(
        self,
        name: str,
        progress: Callable[[trainer_pb2.PipelineRun], None] | None = None,
    ) -> trainer_pb2.PipelineRun:
        """Follows a pipeline run to its end. Raises JobFailedError."""
        watch = self.trainer.WatchPipelineRun(
            trainer_pb2.WatchPipelineRunRequest(name=self.path("pipelineRuns", name))
        )
        return await self._wait(watch, "pipeline_run", progress)

    async def train(
        self,
        spec: trainer_pb2.TrainSpec,
        progress: Callable[[trainer_pb2.Job], None] | None = None,
    ) -> trainer_pb2.Run:
        """Runs one TRAIN job and answers its run. Raises JobFailedError."""
        request = trainer_pb2.SubmitJobRequest(
            parent=self.parent, job=trainer_pb2.Job(train=spec), request_id=request_id()
        )
        job = (await self.trainer.SubmitJob(request)).job
        job = await self._wait(
            self.trainer.WatchJob(trainer_pb2.WatchJobRequest(name=job.name)),
            "job",
            progress,
        )
        return (await self.trainer.GetRun(trainer_pb2.GetRunRequest(name=job.run))).run

    # serving

    async def predict(
        self,
        model: str,
        entity_keys: Mapping[str, Any],
        request_fields: Mapping[str, Any] | None = None,
        *,
        as_of: datetime | None = None,
        prediction_id: str = "",
        timeout: float | None = None,
    ) -> inference_pb2.PredictResponse:
        """One prediction."""
        request = inference_pb2.PredictRequest(
            model=self.path("models", model),
            entity_keys={name: from_python(value) for name, value in entity_keys.items()},
            request_fields={name: from_python(value) for name, value in (request_fields or {}).items()},
            prediction_id=prediction_id,
        )
        if as_of is not None:
            request.as_of.FromDatetime(as_of)
        return await self.inference.Predict(request, timeout=timeout)

    async def record_outcomes(
        self,
        model: str,
        outcomes: Sequence[tuple[str, float, datetime]],
        *,
        name: str = "label",
    ) -> int:
        """Sends (prediction id, value, time at which it became known); answers how many were accepted."""
        accepted = 0
        for start in range(0, len(outcomes), 10_000):
            request = inference_pb2.RecordOutcomeRequest(model=self.path("models", model))
            for prediction, value, moment in outcomes[start : start + 10_000]:
                request.outcomes.add(
                    prediction_id=prediction,
                    name=name,
                    value=value,
                    event_time=timestamp(moment),
                )
            accepted += (await self.inference.RecordOutcome(request)).accepted_count
        return accepted

    async def wait_serving(self, model: str, *, within: float = 60.0) -> inference_pb2.ServingStatus:
        """What the gateway serves, once it is the registry's production release with its golden rows reproduced.
        Raises TimeoutError."""
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
        """Returns when the monitor has read every prediction and outcome logged so far. Raises TimeoutError."""
        request = monitor_pb2.GetIngestStatusRequest(parent=self.parent)
        async with asyncio.timeout(within):
            while (await self.monitor.GetIngestStatus(request)).lag_records:
                await asyncio.sleep(0.05)

    async def rollback(
        self, model: str, reason: str, *, timeout: float = 30.0
    ) -> registry_pb2.RollbackModelResponse:
        """Serves the release that served before; answers when every live gateway has acknowledged."""
        request = registry_pb2.RollbackModelRequest(
            name=self.path("models", model), reason=reason, request_id=request_id()
        )
        return await self.registry.RollbackModel(request, timeout=timeout)

    async def _wait(
        self,
        watch: AsyncIterator[Any],
        field: str,
        progress: Callable[[Any], None] | None = None,
    ) -> Any:
        item = None
        try:
            async for message in watch:
                item = getattr(message, field)
                if progress is not None:
                    progress(item)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        if item is None or item.state != job_pb2.JOB_STATE_SUCCEEDED:
            name, reason, text = (
                (item.name, item.error_reason, item.error_message) if item else ("job", "NO_ANSWER", "")
            )
            raise JobFailedError(name, reason, text)
        return item


def request_id() -> str:
    """A new id for one intended change; send the same one again to retry it."""
    return uuid.uuid4().hex


def timestamp(moment: datetime) -> Timestamp:
    """A protobuf timestamp of an aware datetime (a naive one is taken as UTC)."""
    result = Timestamp()
    result.FromDatetime(moment)
    return result


def now() -> datetime:
    """The current time, aware, in UTC."""
    return datetime.now(UTC)
