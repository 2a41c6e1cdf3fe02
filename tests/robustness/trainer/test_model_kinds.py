"""The standard pipeline and TUNE jobs over models that are not binary, on real Ray and a real registry."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest

import flywheel as fw
from flywheel_common.config import S3Settings
from flywheel_common.signature import BOOL, FLOAT64, STRING
from flywheel_common.storage.s3 import object_store
from flywheel_protos.registry.v1 import model_pb2, registry_pb2
from flywheel_protos.trainer.v1 import trainer_pb2 as pb
from flywheel_protos.types.v1 import job_pb2
from flywheel_registry.artifacts.graph import Feature
from flywheel_registry.fakes.checks import MemoryFeatureSets
from flywheel_registry.fakes.store import MemoryStore
from flywheel_registry.server import wire
from flywheel_registry.store.onnxruntime.graphs import OnnxGraphs
from tests.support.builders.registry import gateway_with
from tests.support.builders.trainer import learnable_rows
from tests.support.eventually import eventually
from tests.support.peers.trainer import FEATURE_SET, MODEL, TRAINING_SET, Peers, landed_spine
from tests.support.servers.registry import NO_TICKS, memory_ports, registry_settings, running

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ESTIMATORS = "flywheel_job.recipes.estimators.training:train"
FEATURES = {"v__x": FLOAT64, "v__z": FLOAT64, "v__c": STRING, "v__b": BOOL}
SPINE = landed_spine(label="delay")


@pytest.fixture
async def registry() -> AsyncIterator[Any]:
    """A stub to a registry that loads the files it gets, with the model."""
    ports, clock = memory_ports(MemoryStore())
    ports = replace(
        ports,
        graphs=OnnxGraphs(ports.objects, memory_bytes=8 << 30, seconds=60.0),
        features=MemoryFeatureSets(every={name: Feature(kind) for name, kind in FEATURES.items()}),
    )
    async with running(wire(registry_settings(**NO_TICKS), clock, ports)) as stub:
        await stub.CreateModel(registry_pb2.CreateModelRequest(parent="projects/default", model_id="late"))
        yield stub


@pytest.fixture
async def client(
    trainer_settings: dict[str, str],
    with_peers: dict[str, str],
    with_ray: dict[str, str],
    start_trainer: Callable[[dict[str, str]], Awaitable[Any]],
    registry: Any,
) -> AsyncIterator[fw.Client]:
    """The SDK's client of a trainer with an experiment."""
    settings = trainer_settings | with_peers | with_ray
    await start_trainer(settings | {"FLYWHEEL_TRAINER_REGISTRY_ADDRESS": registry.address})
    async with fw.Client(trainer=settings["FLYWHEEL_TRAINER_LISTEN"]) as client:
        await client.create_experiment("late")
        yield client


async def relabel(settings: S3Settings, task: str) -> None:
    """Give the rows of the training set a label of this task."""
    rows = learnable_rows(4000)
    known = rows.with_columns(pl.col("v__x").fill_null(20.0), pl.col("v__c").fill_null("CC"))
    signal = 0.2 * (known["v__x"] - 20) - known["v__z"] + (known["v__c"] == "AA").cast(pl.Float64)
    values = np.asarray(signal)
    label = np.digitize(values, [-1.0, 0.0]) if task == "multiclass" else 30 * values
    content = io.BytesIO()
    rows.with_columns(pl.Series("label", label)).write_parquet(content)
    async with object_store(settings) as store:
        await store.put("sets/one/part-0.parquet", content.getvalue())


def spec(train: pb.TrainSpec, fallback: model_pb2.Fallback) -> pb.PipelineSpec:
    return pb.PipelineSpec(
        model=MODEL, feature_set=FEATURE_SET, spine=SPINE, train=train, fallback=fallback, start_rollout=True
    )


async def finished(client: fw.Client, started: pb.PipelineSpec, request_id: str) -> pb.PipelineRun:
    request = pb.StartPipelineRunRequest(parent="projects/default", spec=started, request_id=request_id)
    name = (await client.trainer.StartPipelineRun(request)).pipeline_run.name

    async def ended() -> pb.PipelineRun | None:
        run = (await client.trainer.GetPipelineRun(pb.GetPipelineRunRequest(name=name))).pipeline_run
        return run if run.HasField("ended_at") else None

    run: pb.PipelineRun = await eventually(ended, within=400, every=0.5)
    assert run.state == job_pb2.JOB_STATE_SUCCEEDED, run.error_message
    assert run.gate_passed and run.rollout
    return run


async def test_a_regression_passes_the_standard_pipeline_and_is_compared(
    client: fw.Client, registry: Any, peers: Peers, s3_settings: S3Settings
) -> None:
    await relabel(s3_settings, "regression")
    tabular = pb.TabularRecipe(
        epochs=3, hidden_sizes=[16], batch_size=128, learning_rate=3e-3, task="regression"
    )
    train = pb.TrainSpec(experiment="projects/default/experiments/late", tabular=tabular, workers=1)
    started = spec(train, model_pb2.Fallback(default_score=-12.5))
    run = await finished(client, started, "first")
    version = (
        await registry.GetModelVersion(registry_pb2.GetModelVersionRequest(name=run.model_version))
    ).model_version
    assert version.signature.output.WhichOneof("kind") == "regression"
    assert version.metrics["r2"] > 0.3 and "auc" not in version.metrics and "threshold" not in version.metrics
    release = (await registry.GetRelease(registry_pb2.GetReleaseRequest(name=run.release))).release
    assert (release.calibration.WhichOneof("kind"), release.threshold) == (None, 0.0)
    assert release.fallback.default_score == -12.5

    skip = registry_pb2.SkipRolloutStepRequest(name=run.rollout, reason="no ticker in this test")
    async with gateway_with(registry, run.release):
        await registry.SkipRolloutStep(skip)
    again = await finished(client, started, "second")
    challenger = (
        await registry.GetModelVersion(registry_pb2.GetModelVersionRequest(name=again.model_version))
    ).model_version
    assert challenger.metrics["champion_rmse"] == pytest.approx(version.metrics["rmse"])


async def test_classes_of_an_estimator_pass_the_standard_pipeline(
    client: fw.Client, registry: Any, peers: Peers, s3_settings: S3Settings
) -> None:
    await relabel(s3_settings, "multiclass")
    code = pb.CodeRecipe(function=ESTIMATORS, params_json='{"library": "sklearn", "task": "multiclass"}')
    train = pb.TrainSpec(experiment="projects/default/experiments/late", code=code, workers=1)
    run = await finished(client, spec(train, model_pb2.Fallback(default_values=[0.2, 0.3, 0.5])), "first")
    version = (
        await registry.GetModelVersion(registry_pb2.GetModelVersionRequest(name=run.model_version))
    ).model_version
    assert list(version.signature.output.multiclass.class_names) == ["0", "1", "2"]
    assert version.metrics["accuracy"] > 0.6
    release = (await registry.GetRelease(registry_pb2.GetReleaseRequest(name=run.release))).release
    assert (release.calibration.WhichOneof("kind"), release.threshold) == (None, 0.0)


async def test_the_best_trial_of_a_regression_is_registered(
    client: fw.Client, registry: Any, peers: Peers, s3_settings: S3Settings
) -> None:
    await relabel(s3_settings, "regression")
    base = fw.TrainJob(
        ESTIMATORS,
        source=None,
        experiment="late",
        data={"train": TRAINING_SET},
        params={"library": "sklearn", "task": "regression"},
        cpus_per_worker=0.5,
    )
    space = {"settings": fw.Choices([{"alpha": 1.0}, {"alpha": 1e7}])}
    result = await client.tune(fw.TuneJob(base, space=space, minimize="rmse", algorithm="grid"))
    [best] = result.best
    name = await client.register_trial(best, MODEL)
    version = (await registry.GetModelVersion(registry_pb2.GetModelVersionRequest(name=name))).model_version
    assert version.signature.output.WhichOneof("kind") == "regression"
    assert version.metrics["rmse"] == best.values[0]
