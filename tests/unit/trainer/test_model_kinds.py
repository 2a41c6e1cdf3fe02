"""Models of each recipe for each task, from the run that trained them to a release in a real registry."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from pyarrow import fs

from flywheel_common.clock import ManualClock
from flywheel_common.fakes.objects import MemoryObjectStore
from flywheel_common.grpc.channel import channel
from flywheel_common.ids import SequentialIds
from flywheel_common.signature import FLOAT64, STRING
from flywheel_job import objects
from flywheel_job.artifacts import artifact_key
from flywheel_job.launch import Column, DataSet, LaunchSpec
from flywheel_job.recipes.tabular.spec import Hyperparameters, TabularSpec
from flywheel_protos.registry.v1 import model_pb2, registry_pb2
from flywheel_registry.artifacts.graph import Feature
from flywheel_registry.fakes.checks import MemoryFeatureSets
from flywheel_registry.fakes.store import MemoryStore
from flywheel_registry.server import wire
from flywheel_trainer.fakes.feature import MemoryFeature
from flywheel_trainer.fakes.models import MemoryEvaluations, MemoryModels
from flywheel_trainer.fakes.runs import MemoryRuns
from flywheel_trainer.fakes.tracking import MemoryTracking
from flywheel_trainer.jobs.built_in import ESTIMATOR
from flywheel_trainer.jobs.code import CodeRecipe
from flywheel_trainer.jobs.errors import InvalidSpec
from flywheel_trainer.jobs.evaluate import EvaluateKind, EvaluatePeers
from flywheel_trainer.jobs.models import Models
from flywheel_trainer.jobs.ports import TrainingSet
from flywheel_trainer.jobs.train import TrainSettings
from flywheel_trainer.pipelines.kinds.compare import CompareStep
from flywheel_trainer.pipelines.kinds.register import RegisterStep
from flywheel_trainer.pipelines.kinds.release import ReleaseStep, RolloutStep
from flywheel_trainer.pipelines.pipeline_run import check_pipeline
from flywheel_trainer.pipelines.run_report import RunReports
from flywheel_trainer.pipelines.step_kind import Begun, Result
from flywheel_trainer.runs.run import Run, RunName, RunState
from flywheel_trainer.runs.use_cases import Runs
from flywheel_trainer.store.grpc.models import RegisteredModels
from flywheel_trainer.store.grpc.registry import GrpcRegistry
from tests.support.builders import trainer as build
from tests.support.builders.registry import gateway_with
from tests.support.builders.trainer import AT, EXPERIMENT, TRAINING_SET
from tests.support.servers.registry import NO_TICKS, memory_ports, registry_settings, running
from tests.support.step_jobs import LocalEvaluations
from tests.support.training_job import launch_spec, run_here, tabular_job

MODEL, SET = "projects/p/models/late", "projects/p/featureSets/late/versions/1"
ROWS = 600
COLUMNS = (Column("v__x", "FLOAT64"), Column("v__kind", "STRING"))
START = datetime(2013, 1, 1, tzinfo=UTC)
TASKS = ("binary", "multiclass", "regression")
SETTINGS: dict[str, dict[str, Any]] = {
    "sklearn": {},
    "xgboost": {"n_estimators": 10, "max_depth": 3},
    "lightgbm": {"n_estimators": 10, "num_leaves": 7},
}


def rows(task: str) -> pl.DataFrame:
    random = np.random.default_rng(4)
    x, kind = random.normal(size=ROWS), random.choice(["a", "b", "c"], ROWS)
    signal = x + np.where(kind == "a", 1.5, 0) + random.normal(size=ROWS) / 4
    label = {
        "binary": (signal > 0.5).astype(float),
        "multiclass": np.digitize(signal, [0.0, 1.0]).astype(float),
        "regression": 30 * signal - 200,
    }[task]
    times = [START + timedelta(hours=n) for n in range(ROWS)]
    return pl.DataFrame({"event_timestamp": times, "label": label, "v__x": x, "v__kind": kind})


def recipe(name: str, task: Any) -> LaunchSpec:
    """A job that trains a model of a recipe on the rows of a task."""
    if name == "tabular":
        hyper = Hyperparameters(hidden_sizes=(8,), epochs=3, batch_size=64, learning_rate=0.01, task=task)
        return tabular_job(TabularSpec(TRAINING_SET, "s3://b/set/", COLUMNS, 1, hyper))
    return launch_spec(
        "flywheel_job.recipes.estimators.training:train",
        params={"library": name, "task": task, "settings": SETTINGS[name]},
        data={"train": DataSet("s3://b/set/", TRAINING_SET, COLUMNS)},
        seed=1,
    )


class Platform:
    """A registry in memory, and runs whose models the steps register there."""

    def __init__(self, stub: Any, opened: Any, folder: Path) -> None:
        self.stub, self.folder = stub, folder
        self.registry = GrpcRegistry(opened)
        self.feature, self.objects = MemoryFeature({SET: TRAINING_SET}), MemoryObjectStore()
        described = TrainingSet(TRAINING_SET, "s3://b/set/", COLUMNS, ROWS, "f" * 64, SET)
        self.feature.known[TRAINING_SET] = described
        self.store = MemoryRuns(MemoryTracking())
        registered = RegisteredModels(self.registry, self.objects, "b")
        models = Models(registered, self.store, self.objects, "b")
        peers = EvaluatePeers(self.feature, models, MemoryEvaluations(MemoryModels()), self.objects)
        kind = EvaluateKind(peers, TrainSettings("b", "python", "127.0.0.1:1", 1.0))
        self.evaluations = LocalEvaluations(kind, self.objects, folder)
        self.reports = RunReports(Runs(self.store, SequentialIds("n"), ManualClock(AT)), self.objects)

    async def train(self, run: str, name: str, task: str) -> str:
        """Train in this process; the name of the run with the files."""
        files = fs.SubTreeFileSystem(str(self.folder), fs.LocalFileSystem())
        (self.folder / "b" / "set").mkdir(parents=True, exist_ok=True)
        rows(task).write_parquet(self.folder / "b" / "set" / "0.parquet")
        outcome = run_here(recipe(name, task), files)
        assert outcome.succeeded, outcome.error_message
        for one in outcome.artifacts:
            await self.objects.put(artifact_key(one.sha256), objects.read(files, one.uri))
        tracked = Run(RunName("p", run), "late", state=RunState.RUNNING, artifacts=outcome.artifacts)
        await self.store.create_run(tracked, "", b"", AT)
        return str(tracked.name)

    async def step(self, kind: Any, request_id: str, **spec: Any) -> Result:
        async def nothing(*_: Any) -> None:
            return None

        kind.check(spec, "p", ())
        begun = Begun(build.pipeline_run(), "s", spec, request_id, nothing, nothing, nothing)
        found: Result = await kind.run(begun)
        return found

    async def compared(self, run: str) -> Result:
        step = CompareStep(self.registry, self.reports, self.evaluations)  # type: ignore[arg-type]
        return await self.step(step, f"{run}:compare", model=MODEL, run=run, training_set=TRAINING_SET)

    async def released(self, run: str, metrics: dict[str, float], **release: Any) -> tuple[str, str]:
        """The names of the version and its release, after the gate passed."""
        register = RegisterStep(self.feature, self.registry, self.reports)
        found = await self.step(register, f"{run}:register", model=MODEL, run=run, metrics=metrics)
        assert found.outputs["passed"], found.message
        version = found.outputs["model_version"]
        step = ReleaseStep(self.feature, self.registry, self.reports)
        made = await self.step(step, f"{run}:release", model_version=version, run=run, **release)
        return version, made.outputs["release"]


@pytest.fixture
async def platform(tmp_path: Path) -> AsyncIterator[Platform]:
    ports, clock = memory_ports(MemoryStore())
    ports = replace(
        ports,
        features=MemoryFeatureSets(every={"v__x": Feature(FLOAT64), "v__kind": Feature(STRING)}),
    )
    async with AsyncExitStack() as stack:
        stub = await stack.enter_async_context(running(wire(registry_settings(**NO_TICKS), clock, ports)))
        opened = channel(stub.address, client_name="tests", health_check=False)
        platform = Platform(stub, await stack.enter_async_context(opened), tmp_path)
        await platform.store.create_experiment(EXPERIMENT, "", b"", AT)
        await stub.CreateModel(registry_pb2.CreateModelRequest(parent="projects/p", model_id="late"))
        yield platform


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", ["tabular", *SETTINGS])
async def test_a_model_of_each_kind_is_compared_registered_and_released(
    platform: Platform, name: str, task: str
) -> None:
    run = await platform.train("run-1", name, task)
    compared = await platform.compared(run)
    metrics = compared.outputs["metrics"]
    own = {"binary": "auc", "multiclass": "macro_f1", "regression": "rmse"}[task]
    assert {"auc", "macro_f1", "rmse", "threshold"} & metrics.keys() == (
        {own, "threshold"} if task == "binary" else {own}
    )
    assert all(map(math.isfinite, metrics.values()))
    version, release = await platform.released(run, metrics)

    found = (await platform.registry.version(version)).signature.output
    assert found.WhichOneof("kind") == task
    assert list(found.multiclass.class_names) == (["0", "1", "2"] if task == "multiclass" else [])
    stored = (await platform.stub.GetRelease(registry_pb2.GetReleaseRequest(name=release))).release
    assert stored.calibration.WhichOneof("kind") == ("platt" if task == "binary" else None)
    assert (stored.threshold > 0) == (task == "binary")


@pytest.mark.parametrize("task", TASKS)
async def test_a_challenger_is_compared_with_a_champion_of_its_kind(platform: Platform, task: str) -> None:
    run = await platform.train("run-1", "sklearn", task)
    first = (await platform.compared(run)).outputs["metrics"]
    version, release = await platform.released(run, first)
    rollout = await platform.step(RolloutStep(platform.registry), "rollout", release=release)
    # The first release is promoted as soon as a gateway has loaded it; here is no ticker.
    skip = registry_pb2.SkipRolloutStepRequest(name=rollout.outputs["rollout"], reason="no ticker")
    async with gateway_with(platform.stub, release):
        await platform.stub.SkipRolloutStep(skip)
    champion = await platform.registry.champion(MODEL)
    assert champion is not None and champion.version == version
    again = await platform.compared(await platform.train("run-2", "sklearn", task))
    measured = {key: value for key, value in again.outputs["metrics"].items() if key.startswith("champion_")}
    of_champion = {key: measured[f"champion_{key}"] for key in first if f"champion_{key}" in measured}
    assert {"binary": "auc", "multiclass": "macro_f1", "regression": "r2"}[task] in of_champion
    assert {key: pytest.approx(first[key]) for key in of_champion} == of_champion, "the same model"

    other = "regression" if task == "binary" else "binary"
    compared = await platform.compared(await platform.train("run-3", "sklearn", other))
    assert "not compared: the output of" in compared.outputs["note"]
    assert compared.outputs["champion"] == version
    assert not [key for key in compared.outputs["metrics"] if key.startswith("champion_")]


async def test_a_regression_takes_no_threshold(platform: Platform) -> None:
    run = await platform.train("run-1", "sklearn", "regression")
    with pytest.raises(InvalidSpec, match="REGRESSION"):
        await platform.released(run, {"rmse": 1.0}, threshold=0.5)


@pytest.mark.parametrize(
    ("task", "fields", "problem"),
    [
        ("regression", {"threshold": 0.5}, "threshold must be 0"),
        ("regression", {"threshold": 0.0, "fallback": {"defaultValues": [1.0]}}, "set defaultScore"),
        ("multiclass", {"fallback": {"defaultScore": 1.0}}, "set defaultValues"),
        ("binary", {"fallback": {"defaultValues": [0.1]}}, "set defaultScore"),
    ],
)
def test_what_a_model_cannot_have_is_refused_before_it_is_trained(
    task: Any, fields: dict[str, Any], problem: str
) -> None:
    spec = build.pipeline_spec(**fields)
    tabular = replace(spec.train, hyperparameters=replace(spec.train.hyperparameters, task=task))
    code = CodeRecipe(ESTIMATOR, params_json=json.dumps({"library": "sklearn", "task": task}))
    for train in (tabular, replace(spec.train, code=code)):
        with pytest.raises(InvalidSpec, match=problem):
            check_pipeline(replace(spec, train=train), "p")
    fits = {"fallback": {"defaultValues": [0.5, 0.5]} if task == "multiclass" else {"defaultScore": 0.5}}
    check_pipeline(replace(spec, train=tabular, threshold=0.0, **fits), "p")


async def test_a_threshold_and_default_values_of_classes_are_released(platform: Platform) -> None:
    run = await platform.train("run-1", "sklearn", "multiclass")
    fallback = {"defaultValues": [0.2, 0.3, 0.5]}
    _, release = await platform.released(run, {"accuracy": 0.9}, threshold=0.75, fallback=fallback)
    stored: model_pb2.Release = (
        await platform.stub.GetRelease(registry_pb2.GetReleaseRequest(name=release))
    ).release
    assert (stored.threshold, list(stored.fallback.default_values)) == (0.75, [0.2, 0.3, 0.5])
