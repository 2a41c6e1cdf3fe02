"""The sequence recipe as a whole job: check, training, checkpoints, and the exported model."""

from __future__ import annotations

import base64
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import polars as pl
import pytest
from pyarrow import fs

import flywheel as fw
from flywheel.onnx_signature import Feature, OnnxFile, output_spec
from flywheel.train_job import TrainJob
from flywheel_job import objects
from flywheel_job.launch import DataSet, LaunchSpec
from flywheel_job.outcome import Outcome
from flywheel_job.recipes.sequence.params import CHECK, EXPORT, TRAIN, SequenceParams
from flywheel_job.worker import call
from flywheel_protos.types.v1 import value_pb2
from tests.support.training_job import launch_spec, run_here

pytestmark = pytest.mark.timeout(120)
VOCABULARY, TOKENS = 16, 9
PARAMS: dict[str, Any] = {
    "vocabulary": VOCABULARY,
    "column": "v__tokens",
    "steps": 60,
    "batch_size": 32,
    "width": 32,
    "layers": 2,
    "heads": 2,
    "learning_rate": 0.01,
}


def sequences(rows: int, seed: int) -> np.ndarray:
    """Rows that count upwards in steps of 1 to 3."""
    random = np.random.default_rng(seed)
    starts, strides = random.integers(0, VOCABULARY, rows), random.integers(1, 4, rows)
    return (starts[:, None] + strides[:, None] * np.arange(TOKENS)) % VOCABULARY


def write(folder: Path, name: str, rows: Any, schema: Any = None) -> None:
    (folder / "b" / name).mkdir(parents=True)
    frame = pl.DataFrame({"v__tokens": rows}, schema=schema)
    frame.write_parquet(folder / "b" / name / "part-0.parquet")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Buckets with the data sets `train` (a vector of floats) and `holdout` (a list of integers)."""
    write(
        tmp_path, "train", sequences(200, 0).astype(np.float32), {"v__tokens": pl.Array(pl.Float32, TOKENS)}
    )
    write(tmp_path, "holdout", sequences(64, 1).tolist(), {"v__tokens": pl.List(pl.Int64)})
    return tmp_path


def job(*data: str, workers: int = 1, **params: Any) -> LaunchSpec:
    sets = {one: DataSet(f"s3://b/{one}", f"projects/p/trainingSets/{one}") for one in data}
    fields = {"check": CHECK, "export": EXPORT, "seed": 5, "workers": workers}
    return launch_spec(TRAIN, params=PARAMS | params, data=sets, **fields)


def store_in(folder: Path) -> fs.FileSystem:
    return fs.SubTreeFileSystem(str(folder), fs.LocalFileSystem())


def files_of(outcome: Outcome, store: fs.FileSystem) -> dict[str, bytes]:
    return {one.name: objects.read(store, one.uri) for one in outcome.artifacts}


def test_a_job_ends_with_a_model_that_predicts_the_next_token(folder: Path) -> None:
    store = store_in(folder)
    outcome = run_here(job("train", "holdout"), store)
    assert outcome.succeeded, outcome.error_message
    files = files_of(outcome, store)
    report = json.loads(files["report.json"])
    session = onnxruntime.InferenceSession(files["model.onnx"])
    rows = sequences(300, 2)
    # The row of a model is as long as one of training; its first value is not read.
    (scores,) = session.run(["SCORE"], {"INPUT": rows.astype(np.float32)})
    expected = (2 * rows[:, -1] - rows[:, -2]) % VOCABULARY
    assert scores.shape == (300, VOCABULARY)
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-5)
    assert (scores.argmax(axis=1) == expected).mean() > 0.9
    changed = rows.astype(np.float32)
    changed[:, 0] = 3
    np.testing.assert_array_equal(session.run(["SCORE"], {"INPUT": changed})[0], scores)
    # The report: what a registration needs.
    losses = [one.value for one in outcome.points if one.key == "val_loss"]
    assert report["metrics"] == {"val_loss": losses[-1], "perplexity": np.exp(losses[-1])}
    assert report["outputs"] == VOCABULARY
    assert [(one["name"], one["data_type"]) for one in report["inputs"]] == [
        (f"v__tokens_{place}", "INT64") for place in range(TOKENS)
    ]
    assert report["training_set"] == "projects/p/trainingSets/train"
    golden = np.frombuffer(base64.b64decode(report["golden"]["inputs"]), "<f4").reshape(-1, TOKENS)
    np.testing.assert_array_equal(golden, sequences(64, 1)[:16])
    answers = np.frombuffer(base64.b64decode(report["golden"]["scores"]), "<f4").reshape(-1, VOCABULARY)
    np.testing.assert_allclose(session.run(["SCORE"], {"INPUT": golden})[0], answers, atol=1e-6)


def test_the_model_has_a_signature_over_the_feature_it_learned_from(folder: Path, tmp_path: Path) -> None:
    store = store_in(folder)
    files = files_of(run_here(job("train", steps=2), store), store)
    (tmp_path / "model.onnx").write_bytes(files["model.onnx"])
    vector = value_pb2.DATA_TYPE_FLOAT32_VECTOR
    signature = OnnxFile(tmp_path / "model.onnx").signature(
        [Feature("v__tokens", vector, TOKENS)],
        output_spec("multiclass", "", [str(token) for token in range(VOCABULARY)], "", 0),
    )
    assert [(one.name, one.vector_size) for one in signature.inputs] == [("v__tokens", TOKENS)]
    assert json.loads(files["report.json"])["metrics"] == {}


def test_a_job_that_was_stopped_continues_and_exports_the_same_model(folder: Path) -> None:
    store = store_in(folder)
    whole = files_of(run_here(job("train", steps=8), store), store)
    begun = job("train", steps=5)
    call(TRAIN, begun, store)
    again = replace(job("train", steps=8), attempt=2)
    assert files_of(run_here(again, store), store)["model.onnx"] == whole["model.onnx"]


@pytest.mark.parametrize(
    ("name", "rows", "schema", "params", "reason", "message"),
    [
        (
            "a",
            [[1.0, 2.5]] * 40,
            {"v__tokens": pl.Array(pl.Float32, 2)},
            {},
            "UNUSABLE_TRAINING_SET",
            "whole",
        ),
        ("b", [[1, 16]] * 40, {"v__tokens": pl.List(pl.Int64)}, {}, "UNUSABLE_TRAINING_SET", "0 to 15"),
        ("c", [[1]] * 40, {"v__tokens": pl.List(pl.Int64)}, {}, "UNUSABLE_TRAINING_SET", "at least 2"),
        ("d", [1] * 40, {"v__tokens": pl.Int64}, {}, "UNUSABLE_TRAINING_SET", "lists"),
        ("e", ["x"] * 40, {"v__tokens": pl.String}, {}, "UNUSABLE_TRAINING_SET", "lists"),
        ("f", [[1, 2]] * 31, {"v__tokens": pl.List(pl.Int64)}, {}, "EMPTY_DATA_SET", "31 rows"),
        ("g", [[1, 2]] * 40, {"v__tokens": pl.List(pl.Int64)}, {"column": "x"}, "UNUSABLE", "no column 'x'"),
    ],
)
def test_data_that_cannot_be_used_ends_the_job_before_its_workers_start(
    tmp_path: Path, name: str, rows: Any, schema: Any, params: dict[str, Any], reason: str, message: str
) -> None:
    write(tmp_path, name, rows, schema)
    spec = replace(job(name, **params), data={"train": DataSet(f"s3://b/{name}")})
    outcome = run_here(replace(spec, function="flywheel_job.recipes.sequence.none:none"), store_in(tmp_path))
    assert not outcome.succeeded
    assert outcome.error_reason.startswith(reason)
    assert message in outcome.error_message


def test_a_holdout_of_another_length_ends_the_job_before_its_workers_start(folder: Path) -> None:
    write(folder, "short", sequences(64, 1)[:, :-1].tolist(), {"v__tokens": pl.List(pl.Int64)})
    spec = job("train", "holdout")
    spec = replace(spec, data=spec.data | {"holdout": DataSet("s3://b/short")})
    outcome = run_here(replace(spec, function="flywheel_job.recipes.sequence.none:none"), store_in(folder))
    assert outcome.error_reason == "UNUSABLE_TRAINING_SET"
    assert "lists of 9 and of 8 tokens" in outcome.error_message


def test_the_recipe_of_the_sdk_has_the_parameters_of_the_job() -> None:
    made: TrainJob = fw.TransformerRecipe(VOCABULARY).job(experiment="e", data={"train": "t"}, workers=4)
    assert dict(made.params) == asdict(SequenceParams(VOCABULARY))
    assert (made.function, made.check, made.export, made.source) == (TRAIN, CHECK, EXPORT, None)
    assert (made.workers, made.data) == (4, {"train": "t"})
    assert fw.TransformerRecipe(VOCABULARY).job(experiment="e", data={}, export=False).export == ""
