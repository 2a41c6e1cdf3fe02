"""The programs of docs/guides/evaluation.md, as they are written there, with jobs in this process."""

from __future__ import annotations

import ast
import inspect
import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flywheel_common.fakes.objects import MemoryObjectStore
from flywheel_job import objects
from flywheel_job.evaluation.outputs import BINARY_METRICS, MULTICLASS_METRICS, REGRESSION_METRICS
from flywheel_job.export import speed
from flywheel_job.launch import Column, LaunchSpec
from flywheel_job.outcome import Outcome
from flywheel_registry.gates.offline import evaluate_offline
from flywheel_registry.policies.gate_policy import GatePolicy, MetricThreshold
from flywheel_trainer.encoding.specs import spec_of
from flywheel_trainer.fakes.feature import MemoryTrainingSets
from flywheel_trainer.fakes.models import MemoryEvaluations, MemoryModels
from flywheel_trainer.fakes.runs import MemoryRuns
from flywheel_trainer.fakes.tracking import MemoryTracking
from flywheel_trainer.jobs.evaluate import EvaluateKind, EvaluatePeers
from flywheel_trainer.jobs.export import ExportKind
from flywheel_trainer.jobs.models import FoundModel, Models
from flywheel_trainer.jobs.ports import TrainingSet
from flywheel_trainer.jobs.train import TrainSettings
from flywheel_trainer.runs.run import Run
from tests.support.builders import trainer as build
from tests.support.builders.trainer import AT, EXPERIMENT
from tests.support.evaluation_models import OLD_WEIGHTS, Store, logistic, rows
from tests.support.training_job import run_here

GUIDE = Path(__file__).resolve().parents[3] / "docs" / "guides" / "evaluation.md"
P = "projects/p"
VERSION, CHAMPION = f"{P}/models/late/versions/2", f"{P}/models/late/versions/1"
SETTINGS = TrainSettings("b", "python", "", 1.0)


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)


@dataclass
class LocalClient:
    """`run_job` validates a job as the trainer does, runs it in this process, and concludes it."""

    store: Store
    models: MemoryModels = field(default_factory=MemoryModels)
    objects: MemoryObjectStore = field(default_factory=MemoryObjectStore)
    jobs: int = 0

    def __post_init__(self) -> None:
        self.runs = MemoryRuns(MemoryTracking())
        self.evaluations = MemoryEvaluations(self.models)
        training_sets = MemoryTrainingSets()
        name = f"{P}/trainingSets/march"
        columns = (Column("v__x", "FLOAT64"), Column("v__c", "STRING"))
        uri = self.store.put_rows(rows())
        training_sets.known[name] = TrainingSet(name, uri, columns, 3000, "f" * 64, "")
        models = Models(self.models, self.runs, self.objects, "b")
        peers = EvaluatePeers(training_sets, models, self.evaluations, self.objects)
        self.kinds: dict[str, Any] = {
            "EVALUATE": EvaluateKind(peers, SETTINGS),
            "EXPORT": ExportKind(training_sets, models, SETTINGS),
        }

    def path(self, collection: str, name: str) -> str:
        return name if name.startswith("projects/") else f"{P}/{collection}/{name}"

    async def run_job(self, job: Any) -> Any:
        spec = spec_of(job.message(self.path))
        kind = self.kinds[spec.KIND]
        details = json.loads(json.dumps(await kind.validate(spec)))
        self.jobs += 1
        queued = replace(build.job(str(self.jobs)), spec=spec, kind=spec.KIND)
        launch = LaunchSpec.from_json(kind.launch(queued, details, 1).files["spec.json"])
        run_here(replace(launch, log_uri=""), self.store.files)
        for path in objects.files_under(self.store.files, "s3://b/artifacts"):
            await self.objects.put(path.removeprefix("b/"), objects.read(self.store.files, f"s3://{path}"))

        async def read(file: str) -> bytes | None:
            uri = launch.outcome_uri if file == "outcome.json" else launch.failure_uri
            found = objects.files_under(self.store.files, uri)
            return objects.read(self.store.files, uri) if found else None

        success, failure = await kind.conclude(read)
        assert failure is None, failure.error_message
        return await self._ended(queued.run, success)

    async def _ended(self, name: Any, outcome: Outcome) -> Any:
        metrics = {point.key: point.value for point in outcome.points}
        run = Run(name, "late", metrics=metrics, artifacts=outcome.artifacts)
        await self.runs.create_run(run, "", b"", AT)
        return SimpleNamespace(name=str(name), metrics=metrics)


@pytest.fixture
async def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalClient:
    monkeypatch.setattr(speed, "ROUNDS", 1)
    made = LocalClient(Store(tmp_path))
    await made.runs.create_experiment(EXPERIMENT, "", b"", AT)
    model = made.store.put_model(logistic(), name=VERSION, threshold=0.5)
    champion = made.store.put_model(logistic(OLD_WEIGHTS), name=CHAMPION)
    made.models.known = {VERSION: FoundModel(model), CHAMPION: FoundModel(champion)}
    made.models.serving[f"{P}/models/late"] = FoundModel(champion)
    return made


async def executed(block: str, names: dict[str, Any]) -> None:
    code = compile(block, str(GUIDE), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    found = eval(code, names)
    if inspect.isawaitable(found):
        await found


async def test_the_programs_of_the_guide_do_what_it_says(client: LocalClient) -> None:
    evaluate, gate, export, compare = blocks()
    names: dict[str, Any] = {"client": client}
    await executed(evaluate, names)
    assert 0.5 < names["low"] < names["auc"] < names["high"] < 1
    (evidence,) = client.evaluations.recorded[VERSION]
    assert evidence["champion"] == CHAMPION

    await executed(gate, names)
    policy = GatePolicy(
        tuple(
            MetricThreshold(one.metric, **{bound.name: value for bound, value in one.ListFields()[1:]})
            for one in names["policy"].offline
        ),
        min_evaluation_rows=names["policy"].min_evaluation_rows,
    )
    assert evaluate_offline(policy, evidence["values"], {}).passed

    await executed(export, names)
    assert names["exported"].metrics["flip_share"] <= 0.02
    await executed(compare, names)
    compared = names["compared"].metrics
    assert abs(compared["difference_log_loss"]) < 0.01
    assert compared["difference_log_loss_low"] <= compared["difference_log_loss_high"]


def test_the_metrics_of_the_guide_are_those_of_each_kind() -> None:
    tables = re.findall(r"\| (BINARY|MULTICLASS|REGRESSION) \| (.*) \|", GUIDE.read_text())
    found = {kind: set(re.findall(r"`(\w+)`", text)) for kind, text in tables}
    assert found == {
        "BINARY": set(BINARY_METRICS),
        "MULTICLASS": set(MULTICLASS_METRICS),
        "REGRESSION": set(REGRESSION_METRICS),
    }
