"""The kinds of steps over services in memory: what each asks for, gives, and refuses."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from flywheel_common.clock import ManualClock
from flywheel_common.errors import FlywheelError
from flywheel_common.fakes.objects import MemoryObjectStore
from flywheel_common.ids import SequentialIds
from flywheel_job.artifacts import MODEL as MODEL_FILE
from flywheel_job.artifacts import REPORT, WEIGHTS, artifact_key
from flywheel_job.outcome import Artifact
from flywheel_trainer.fakes.feature import MemoryFeature
from flywheel_trainer.fakes.registry import MemoryRegistry, MemoryWeights
from flywheel_trainer.fakes.runs import MemoryRuns
from flywheel_trainer.fakes.tracking import MemoryTracking
from flywheel_trainer.jobs.errors import InvalidSpec
from flywheel_trainer.jobs.ports import TrainingSet
from flywheel_trainer.pipelines.kinds.champion import ChampionStep
from flywheel_trainer.pipelines.kinds.compare import CompareStep
from flywheel_trainer.pipelines.kinds.register import RegisterStep
from flywheel_trainer.pipelines.kinds.release import ReleaseStep, RolloutStep
from flywheel_trainer.pipelines.kinds.training_set import TrainingSetStep
from flywheel_trainer.pipelines.run_report import RunReports
from flywheel_trainer.pipelines.step_kind import Begun, Result
from flywheel_trainer.runs.run import Run, RunName, RunState
from flywheel_trainer.runs.use_cases import Runs
from tests.support.builders import trainer as build
from tests.support.builders.trainer import AT, EXPERIMENT, TRAINING_SET

MODEL = "projects/p/models/late"
SET = "projects/p/featureSets/late/versions/1"
RUN = RunName("p", "run-1")
CODE_REPORT: dict[str, Any] = {
    "framework": "onnx",
    "inputs": [{"name": "v__x", "data_type": "FLOAT64", "vocabulary": []}],
    "outputs": 1,
    "metrics": {"accuracy": 0.9, "odd": float("nan")},
    "training_set": TRAINING_SET,
    "golden": {
        "row_count": 1,
        "inputs": base64.b64encode(b"1234").decode(),
        "scores": base64.b64encode(b"5678").decode(),
    },
}
"""What `ctx.export` of a user's code writes."""


class World:
    """A run that exported a model, and the peers."""

    def __init__(self) -> None:
        self.feature, self.registry = MemoryFeature({SET: TRAINING_SET}), MemoryRegistry([MODEL])
        self.feature.known[TRAINING_SET] = TrainingSet(TRAINING_SET, "s3://b/t", (), 7, "f" * 64, SET)
        self.objects = MemoryObjectStore()
        self.store = MemoryRuns(MemoryTracking())
        self.runs = Runs(self.store, SequentialIds("n"), ManualClock(AT))
        self.reports = RunReports(self.runs, self.objects)

    async def export(self, report: Mapping[str, Any] | None, **files: bytes) -> None:
        contents = {name.replace("_", "."): data for name, data in files.items()}
        if report is not None:
            contents[REPORT] = json.dumps(report).encode()
        artifacts = []
        for name, data in contents.items():
            digest = hashlib.sha256(data).hexdigest()
            await self.objects.put(artifact_key(digest), data)
            artifacts.append(Artifact(name, len(data), digest, "s3://b/k"))
        run = Run(RUN, EXPERIMENT.name.experiment, state=RunState.RUNNING, artifacts=tuple(artifacts))
        await self.store.create_experiment(EXPERIMENT, "", b"", AT)
        await self.store.create_run(run, "", b"", AT)

    async def run(self, kind: Any, **spec: Any) -> Result:
        async def nothing(*_: Any) -> None:
            return None

        kind.check(spec, "p", ())
        begun = Begun(build.pipeline_run(), "s", spec, "pipe-1:s", nothing, nothing, nothing)
        found: Result = await kind.run(begun)
        return found


@pytest.fixture
def world() -> World:
    return World()


async def test_the_export_of_a_users_code_is_registered_and_released(world: World) -> None:
    await world.export(CODE_REPORT, model_onnx=b"graph", notes_txt=b"text")
    compare = CompareStep(world.registry, world.reports, None)  # type: ignore[arg-type] - it runs no job
    compared = await world.run(compare, model=MODEL, run=str(RUN), training_set=TRAINING_SET)
    assert {"accuracy": 0.9} == compared.outputs["metrics"]
    assert "no start of its evaluation rows" in compared.outputs["note"]
    register = RegisterStep(world.feature, world.registry, world.reports)
    registered = await world.run(
        register,
        model=MODEL,
        run=str(RUN),
        metrics=compared.outputs["metrics"],
        note=compared.outputs["note"],
    )
    version = registered.outputs["model_version"]
    assert (f"{MODEL}/versions/1", True) == (version, registered.outputs["passed"])
    stored = world.registry.versions[version]
    assert (str(RUN), TRAINING_SET, SET) == (
        stored["training_run"],
        stored["training_dataset"],
        stored["feature_set"],
    )
    assert ({"accuracy": 0.9}, b"1234", b"5678") == (
        stored["metrics"],
        stored["golden_inputs"],
        stored["golden_scores"],
    )
    assert {MODEL_FILE: b"graph", "notes.txt": b"text"} == {
        name: data for (_, name), data in world.registry.files.items() if name != REPORT
    }
    release = ReleaseStep(world.feature, world.registry, world.reports)
    released = await world.run(release, model_version=version, run=str(RUN))
    assert 0.5 == released.outputs["threshold"], "the report has no threshold"
    champion = ChampionStep(world.registry, MemoryWeights(world.registry, world.objects, "b"))
    none = (await world.run(champion, model=MODEL)).outputs
    assert dict.fromkeys(champion.outputs, "") == none
    await world.registry.start_rollout(MODEL, released.outputs["release"], "", "")
    found = await world.registry.champion(MODEL)
    assert found is not None
    assert (version, released.outputs["release"]) == (found.version, found.release)
    without = await world.run(champion, model=MODEL)
    assert released.outputs["release"] == without.outputs["release_in_production"]
    assert (version, "") == (without.outputs["model_version_in_production"], without.outputs["weights_of"])


async def test_a_champion_with_weights_can_be_started_from(world: World) -> None:
    report = CODE_REPORT | {"calibration": {"slope": 2.0, "intercept": 1.0}, "threshold": 0.25}
    await world.export(report, model_onnx=b"graph", weights_pt=b"weights")
    register = RegisterStep(world.feature, world.registry, world.reports)
    version = (await world.run(register, model=MODEL, run=str(RUN))).outputs["model_version"]
    assert WEIGHTS in {name for name, _, _ in world.registry.versions[version]["artifacts"]}
    release = ReleaseStep(world.feature, world.registry, world.reports)
    released = await world.run(release, model_version=version, run=str(RUN))
    assert 0.25 == released.outputs["threshold"]
    await world.registry.start_rollout(MODEL, released.outputs["release"], "", "")
    champion = ChampionStep(world.registry, MemoryWeights(world.registry, world.objects, "b"))
    assert version == (await world.run(champion, model=MODEL)).outputs["weights_of"]


@pytest.mark.parametrize(
    ("report", "files", "reason"),
    [
        (CODE_REPORT, {}, "MISSING_ARTIFACT"),
        (None, {"model_onnx": b"graph"}, "MISSING_ARTIFACT"),
        (CODE_REPORT | {"outputs": 3, "task": "binary"}, {"model_onnx": b"graph"}, "UNSUPPORTED_MODEL"),
        (CODE_REPORT | {"task": "multiclass"}, {"model_onnx": b"graph"}, "UNSUPPORTED_MODEL"),
        (CODE_REPORT | {"task": "ranking"}, {"model_onnx": b"graph"}, "UNSUPPORTED_MODEL"),
        (CODE_REPORT | {"outputs": 2, "classes": ["a", "a"]}, {"model_onnx": b"graph"}, "UNSUPPORTED_MODEL"),
        (
            CODE_REPORT | {"task": "regression", "calibration": {"slope": 1.0, "intercept": 0.0}},
            {"model_onnx": b"graph"},
            "UNSUPPORTED_MODEL",
        ),
    ],
)
async def test_a_run_without_a_registrable_model_is_refused(
    world: World, report: Any, files: dict[str, bytes], reason: str
) -> None:
    await world.export(report, **files)
    with pytest.raises(FlywheelError) as caught:
        await world.run(RegisterStep(world.feature, world.registry, world.reports), model=MODEL, run=str(RUN))
    assert reason == caught.value.reason
    assert {} == world.registry.versions


@pytest.mark.parametrize(
    ("kind", "field", "spec"),
    [
        ("register", "model", {"model": "projects/q/models/late", "run": str(RUN)}),
        ("register", "run", {"model": MODEL, "run": "projects/q/runs/run-1"}),
        ("release", "model_version", {"model_version": "projects/q/models/m/versions/1", "run": str(RUN)}),
        ("rollout", "release", {"release": "projects/q/models/m/releases/1"}),
        ("rollout", "release", {"release": 7}),
    ],
)
async def test_names_of_other_projects_are_refused(
    world: World, kind: str, field: str, spec: dict[str, Any]
) -> None:
    await world.export(CODE_REPORT, model_onnx=b"graph")
    kinds: dict[str, Any] = {
        "register": RegisterStep(world.feature, world.registry, world.reports),
        "release": ReleaseStep(world.feature, world.registry, world.reports),
        "rollout": RolloutStep(world.registry),
    }
    with pytest.raises(InvalidSpec) as caught:
        await world.run(kinds[kind], **spec)
    assert str(caught.value).startswith(field)
    kinds[kind].check({}, "p", ("model", "run", "model_version", "release"))


async def test_a_leaking_training_set_fails_its_step(world: World) -> None:
    step = TrainingSetStep(world.feature)
    known = world.feature.known[TRAINING_SET]
    world.feature.known[TRAINING_SET] = replace(known, categories={"v__c": ("AA", "BB")})
    built = await world.run(step, feature_set=SET, spine={"file": {}})
    assert {
        "training_set": TRAINING_SET,
        "feature_set": SET,
        "row_count": 7,
        "content_hash": "f" * 64,
        "categories": {"v__c": ["AA", "BB"]},
    } == built.outputs
    world.feature.known[TRAINING_SET] = TrainingSet(TRAINING_SET, "", (), 7, "f" * 64, SET, naive=True)
    with pytest.raises(FlywheelError) as caught:
        await world.run(step, feature_set=SET, spine={"file": {}})
    assert "LEAKING_TRAINING_SET" == caught.value.reason
