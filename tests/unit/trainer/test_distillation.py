"""Distillation: refused teachers, the loss, and what a student learns from a teacher."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import polars as pl
import pytest
import torch
from onnx import TensorProto, helper
from pyarrow import fs
from sklearn import metrics as sk

from flywheel_common.grpc.error_details import from_rpc_error
from flywheel_common.signature import OutputSpec
from flywheel_job import objects
from flywheel_job.artifacts import MODEL, REPORT
from flywheel_job.launch import Column, LaunchSpec
from flywheel_job.model_file import InputTensor, ModelFile
from flywheel_job.outcome import Outcome
from flywheel_job.recipes.tabular.network import TabularNet
from flywheel_job.recipes.tabular.spec import Hyperparameters, TabularSpec
from flywheel_job.recipes.tasks import Task
from flywheel_job.scoring import onnx_outputs, open_session
from flywheel_job.signature import Input
from flywheel_protos.trainer.v1 import trainer_pb2 as pb
from flywheel_trainer.encoding.specs import spec_from_json, spec_of, spec_to_json
from flywheel_trainer.jobs.models import FoundModel
from flywheel_trainer.jobs.ports import TrainingSet
from flywheel_trainer.jobs.train import TrainKind, TrainSettings
from flywheel_trainer.pipelines.artifacts import version_fields
from tests.support.builders import trainer as build
from tests.support.builders.trainer import TRAINING_SET
from tests.support.builders.trainer_requests import P, submit_job
from tests.support.servers.trainer import MemoryTrainer
from tests.support.training_job import run_here, tabular_job

START = datetime(2013, 1, 1, tzinfo=UTC)
NAMES = ("v__a", "v__b")
TEACHER = f"{P}/models/slow/versions/3"
TASKS: tuple[tuple[Task, int], ...] = (("binary", 1), ("multiclass", 3), ("regression", 1))
ACTIVATIONS = {"binary": "Sigmoid", "multiclass": "Softmax", "regression": "Identity"}


def graph(task: Task, weights: np.ndarray) -> bytes:
    """x `[rows, inputs]` → y: a linear model with the activation of the task."""
    constant = helper.make_tensor("w", TensorProto.FLOAT, weights.shape, weights.astype(np.float32).ravel())
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["z"]),
        helper.make_node(ACTIVATIONS[task], ["z"], ["y"]),
    ]
    ends = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", width])]
        for name, width in zip(("x", "y"), weights.shape, strict=True)
    ]
    made = helper.make_model(
        helper.make_graph(nodes, "teacher", *ends, [constant]), opset_imports=[helper.make_opsetid("", 18)]
    )
    made.ir_version = 9
    content: bytes = made.SerializeToString()
    return content


def teacher_of(task: Task, content: bytes, names: tuple[str, ...] = NAMES, outputs: int = 1) -> ModelFile:
    """The file of a model at s3://b/teacher."""
    return ModelFile(
        name=TEACHER,
        uri="s3://b/teacher",
        sha256=hashlib.sha256(content).hexdigest(),
        tensors=(InputTensor("x", "FLOAT32", tuple(Input(name, "FLOAT64") for name in names)),),
        output="y",
        kind=task.upper(),
        classes=tuple(str(number) for number in range(outputs)) if task == "multiclass" else (),
    )


def store_with(folder: Path, frame: pl.DataFrame, content: bytes = b"") -> fs.FileSystem:
    (folder / "b" / "set").mkdir(parents=True, exist_ok=True)
    frame.write_parquet(folder / "b" / "set" / "part-0.parquet")
    (folder / "b" / "teacher").write_bytes(content)
    return fs.SubTreeFileSystem(str(folder), fs.LocalFileSystem())


def job(task: Task, teacher: ModelFile | None, columns: tuple[str, ...] = NAMES, **hyper: Any) -> LaunchSpec:
    spec = TabularSpec(
        "projects/p/trainingSets/t",
        "s3://b/set/",
        tuple(Column(name, "FLOAT64") for name in columns),
        hyperparameters=Hyperparameters(task=task, **hyper),
        teacher=teacher,
    )
    return tabular_job(spec)


def file_of(outcome: Outcome, store: fs.FileSystem, name: str) -> bytes:
    return objects.read(store, next(one.uri for one in outcome.artifacts if one.name == name))


def run(spec: LaunchSpec, store: fs.FileSystem) -> Outcome:
    outcome = run_here(spec, store)
    assert outcome.succeeded, outcome.error_message
    return outcome


def table(task: Task, outputs: int, rows: int = 400) -> pl.DataFrame:
    random = np.random.default_rng(4)
    x = random.normal(size=(rows, 2))
    label = {
        "binary": (x[:, 0] > 0).astype(float),
        "multiclass": random.integers(0, max(outputs, 2), rows).astype(float),
        "regression": 100 + 7 * x[:, 0] + x[:, 1],
    }[task]
    return pl.DataFrame(
        {
            "event_timestamp": [START + timedelta(hours=i) for i in range(rows)],
            "v__a": x[:, 0],
            "v__b": x[:, 1],
            "w": random.integers(1, 5, rows).astype(float),
            "label": label,
        }
    )


def softmax(z: np.ndarray) -> np.ndarray:
    shifted = np.exp(z - z.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def losses_of(
    task: Task, z: np.ndarray, labels: np.ndarray, taught: np.ndarray, temperature: float, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """The losses of the labels and of the teacher's logits (or values), in float64."""
    t = temperature
    if task == "regression":
        return ((z[:, 0] - labels) / scale) ** 2, ((z[:, 0] - taught[:, 0]) / scale) ** 2
    if task == "binary":
        p, q, soft = sigmoid(z[:, 0]), sigmoid(taught[:, 0] / t), sigmoid(z[:, 0] / t)
        hard = -(labels * np.log(p) + (1 - labels) * np.log(1 - p))
        return hard, -(t**2) * (q * np.log(soft) + (1 - q) * np.log(1 - soft))
    hard = -np.log(softmax(z)[np.arange(len(z)), labels.astype(int)])
    return hard, -(t**2) * (softmax(taught / t) * np.log(softmax(z / t))).sum(axis=1)


@pytest.mark.parametrize(("task", "outputs"), TASKS)
@pytest.mark.parametrize("weighted", [False, True])
def test_the_loss_is_that_of_an_independent_calculation(
    tmp_path: Path, task: Task, outputs: int, weighted: bool
) -> None:
    frame = table(task, outputs)
    weights = np.random.default_rng(1).normal(size=(2, outputs)).astype(np.float32)
    content = graph(task, weights)
    store = store_with(tmp_path, frame, content)
    # One batch per epoch: the loss of the first epoch is that of the initial network.
    hyper: dict[str, Any] = {"hidden_sizes": (8,), "epochs": 1, "batch_size": 400}
    hyper |= {"teacher_weight": 0.7, "teacher_temperature": 3.0, "weight_column": "w" if weighted else ""}
    outcome = run(job(task, teacher_of(task, content, outputs=outputs), **hyper), store)

    report = json.loads(file_of(outcome, store, REPORT))
    end = report["split"]["train_end"]
    x = frame.select(NAMES).to_numpy().astype(np.float32)[:end]
    labels = frame["label"].to_numpy()[:end]
    torch.manual_seed(0)
    initial = TabularNet([None, None], (8,), task=task, outputs=outputs)
    initial.fit_scaling(x)
    with torch.no_grad():
        z = initial(torch.from_numpy(x)).double().numpy()
    taught = (x @ weights).astype(float)
    mean, scale = labels.mean(), labels.std()
    z = mean + scale * z if task == "regression" else z
    hard, soft = losses_of(task, z, labels, taught, 3.0, scale)
    w = frame["w"].to_numpy()[:end] if weighted else np.ones(end)
    expected = np.average(0.3 * hard + 0.7 * soft, weights=w)
    [found] = [one.value for one in outcome.points if one.key == "train_loss"]
    assert found == pytest.approx(expected, rel=1e-4)
    assert abs(expected - np.average(hard, weights=w)) > 1e-2
    assert outcome.params["teacher"] == report["teacher"] == TEACHER
    assert (outcome.params["teacher_weight"], outcome.params["teacher_temperature"]) == ("0.7", "3.0")


@pytest.mark.parametrize(("task", "outputs"), TASKS)
def test_a_student_alone_learns_every_task(tmp_path: Path, task: Task, outputs: int) -> None:
    frame = table(task, outputs, 2000)
    x = frame.select(NAMES).to_numpy()
    if task == "multiclass":
        frame = frame.with_columns(label=(x[:, 0] > -0.5).astype(float) + (x[:, 0] > 0.5))
    store = store_with(tmp_path, frame)
    outcome = run(job(task, None, epochs=15, batch_size=64, learning_rate=0.01), store)
    report = json.loads(file_of(outcome, store, REPORT))
    assert (report["task"], report["outputs"], report["teacher"]) == (task, outputs, "")
    assert not [name for name in outcome.params if name.startswith("teacher")]
    scores = onnx_outputs(open_session(file_of(outcome, store, MODEL)), x.astype(np.float32))[-300:]
    labels = frame["label"].to_numpy()[-300:]
    metrics = report["metrics"]
    if task == "binary":
        assert metrics["auc"] > 0.98
    elif task == "multiclass":
        assert (scores.argmax(axis=1) == labels).mean() > 0.9
        np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-5)
        assert metrics["accuracy"] > 0.9
    else:
        assert sk.r2_score(labels, scores[:, 0]) > 0.98
        assert metrics["rmse"] < 1.5


def noisy_table(rows: int) -> tuple[pl.DataFrame, np.ndarray]:
    """Ten inputs, labels with much noise, and the true weights."""
    random = np.random.default_rng(11)
    x, truth = random.normal(size=(rows, 10)), random.normal(size=(10, 1))
    probability = sigmoid(0.7 * (x @ truth)[:, 0])
    columns = {f"v__{number}": x[:, number] for number in range(10)}
    times = [START + timedelta(hours=i) for i in range(rows)]
    label = (random.random(rows) < probability).astype(float)
    return pl.DataFrame({"event_timestamp": times, **columns, "label": label}), 0.7 * truth


def test_a_student_of_few_noisy_rows_is_nearer_to_its_teacher_than_one_without(tmp_path: Path) -> None:
    frame, truth = noisy_table(300)
    names = tuple(f"v__{number}" for number in range(10))
    content = graph("binary", truth)
    store = store_with(tmp_path, frame, content)
    settings: dict[str, Any] = {"hidden_sizes": (8,), "epochs": 30, "batch_size": 32, "learning_rate": 0.01}
    probe = np.random.default_rng(12).normal(size=(5000, 10)).astype(np.float32)
    drawn = np.random.default_rng(13).random(5000) < sigmoid(probe @ truth)[:, 0]
    auc = {}
    for name, teacher in (("alone", None), ("taught", teacher_of("binary", content, names))):
        spec = job("binary", teacher, names, teacher_weight=0.9, **settings)
        scores = onnx_outputs(open_session(file_of(run(spec, store), store, MODEL)), probe)[:, 0]
        auc[name] = sk.roc_auc_score(drawn, scores)
    auc["teacher"] = sk.roc_auc_score(drawn, (probe @ truth)[:, 0])
    assert auc["alone"] + 0.02 < auc["taught"] <= auc["teacher"] + 0.005, auc


def test_a_row_that_the_teacher_cannot_read_learns_from_its_label(tmp_path: Path) -> None:
    frame = table("binary", 1)
    content = graph("binary", np.ones((2, 1)))
    names = ("v__a", "v__n")
    # Above 2^24 an integer is not exact in the float32 tensor of the teacher.
    frame = frame.with_columns(v__n=pl.Series([(1 << 24) + 1, *[0] * 399]))
    teacher = teacher_of("binary", content)
    tensor = InputTensor("x", "FLOAT32", (Input("v__a", "FLOAT64"), Input("v__n", "INT64")))
    store = store_with(tmp_path, frame, content)
    found: dict[str, float] = {}
    for name, weight in (("taught", 1.0), ("label", 0.5)):
        spec = job("binary", replace(teacher, tensors=(tensor,)), ("v__a",), epochs=1, batch_size=400)
        spec = replace(spec, params=spec.params | {"teacher_weight": weight, "teacher_temperature": 1.0})
        outcome = run(spec, store)
        found[name] = next(one.value for one in outcome.points if one.key == "train_loss")
    end = 320
    x = frame.select(names[:1]).to_numpy().astype(np.float32)[:end]
    torch.manual_seed(0)
    initial = TabularNet([None], (64, 32))
    initial.fit_scaling(x)
    with torch.no_grad():
        z = initial(torch.from_numpy(x)).double().numpy()
    hard, soft = losses_of("binary", z, frame["label"].to_numpy()[:end], x.astype(float), 1.0, 1.0)
    assert found["taught"] == pytest.approx(np.mean([hard[0], *soft[1:]]), rel=1e-4)
    assert found["label"] == pytest.approx(np.mean([hard[0], *(hard / 2 + soft / 2)[1:]]), rel=1e-4)


def test_a_teacher_with_other_classes_or_damaged_bytes_ends_the_job(tmp_path: Path) -> None:
    content = graph("multiclass", np.ones((2, 4)))
    store = store_with(tmp_path, table("multiclass", 3), content)
    outcome = run_here(job("multiclass", teacher_of("multiclass", content, outputs=4), epochs=1), store)
    assert outcome.error_reason == "UNUSABLE_TRAINING_SET"
    assert "4 classes, but the labels have 3" in outcome.error_message
    damaged = replace(teacher_of("multiclass", content, outputs=3), sha256="0" * 64)
    assert run_here(job("multiclass", damaged, epochs=1), store).error_reason == "UNUSABLE_MODEL"


@pytest.fixture
def peers(trainer: MemoryTrainer) -> MemoryTrainer:
    columns = tuple(Column(name, "FLOAT64") for name in NAMES)
    trainer.feature.known[TRAINING_SET] = TrainingSet(TRAINING_SET, "s3://b/t", columns, 100, "f" * 64, "")
    known = trainer.ports.models.known  # type: ignore[attr-defined]
    known[TEACHER] = FoundModel(teacher_of("binary", b""))
    known[f"{P}/models/slow/versions/4"] = FoundModel(teacher_of("binary", b"", ("v__a", "v__gone")))
    return trainer


@pytest.mark.parametrize(
    ("fields", "expected", "message"),
    [
        ({"teacher": "slow"}, "INVALID_ARGUMENT INVALID_SPEC", "must name a model version"),
        ({"teacher": f"{P}/models/slow/versions/9"}, "NOT_FOUND UNKNOWN_MODEL_VERSION", "versions/9"),
        ({"teacher": f"{P}/models/slow/versions/4"}, "INVALID_ARGUMENT INVALID_SPEC", "'v__gone'"),
        ({"teacher": TEACHER, "task": "regression"}, "INVALID_ARGUMENT INVALID_SPEC", "output is BINARY"),
        ({"task": "ranking"}, "INVALID_ARGUMENT INVALID_SPEC", "'ranking'"),
        ({"teacher": TEACHER, "teacher_weight": 1.5}, "INVALID_ARGUMENT INVALID_SPEC", "at most 1"),
        ({"teacher": TEACHER, "teacher_weight": float("nan")}, "INVALID_ARGUMENT INVALID_SPEC", "weight"),
        ({"teacher": TEACHER, "teacher_temperature": -1}, "INVALID_ARGUMENT INVALID_SPEC", "above 0"),
    ],
)
async def test_a_teacher_that_does_not_fit_is_refused(
    peers: MemoryTrainer, fields: dict[str, Any], expected: str, message: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        await peers.stub.SubmitJob(submit_job(tabular=pb.TabularRecipe(**fields)))
    error = from_rpc_error(caught.value)
    assert f"{error.code.name} {error.reason}" == expected
    assert message in error.message


async def test_the_job_of_a_student_reads_the_file_of_its_teacher(peers: MemoryTrainer) -> None:
    recipe = pb.TabularRecipe(teacher=TEACHER, teacher_weight=0.25)
    submitted = (await peers.stub.SubmitJob(submit_job(tabular=recipe))).job
    tabular = submitted.train.tabular
    assert (tabular.teacher, tabular.teacher_weight, tabular.teacher_temperature) == (TEACHER, 0.25, 2.0)
    spec = spec_of(submitted)
    assert spec_from_json(json.loads(json.dumps(spec_to_json(spec, "p")))) == spec
    settings = TrainSettings("b", "python", "trainer:7103", 1.0)
    ports = peers.ports
    kind = TrainKind(ports.feature, ports.weights, ports.models, None, settings)  # type: ignore[arg-type]
    details = json.loads(json.dumps(await kind.validate(spec)))  # type: ignore[arg-type]
    launch = kind.launch(replace(build.job(), spec=spec), details, 1)
    read = TabularSpec.of(LaunchSpec.from_json(launch.files["spec.json"]))
    assert read.teacher == teacher_of("binary", b"")
    assert read.hyperparameters.teacher_weight == 0.25


def test_a_version_names_its_teacher() -> None:
    report = {"framework": "torch", "inputs": [], "golden": {"row_count": 0, "inputs": "", "scores": ""}}
    assert version_fields(report | {"teacher": TEACHER}, OutputSpec(), {})["tags"] == {"teacher": TEACHER}
    assert version_fields(report, OutputSpec(), {})["tags"] == {}
