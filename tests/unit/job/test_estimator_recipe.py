"""Estimators of each library for each task: their ONNX graphs compute what the estimators compute."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from pyarrow import fs
from sklearn import metrics as sk

from flywheel_job import objects
from flywheel_job.evaluation.tasks import multiclass_metrics, regression_metrics
from flywheel_job.launch import Column, DataSet
from flywheel_job.outcome import Outcome
from flywheel_job.recipes.dataset import encode
from flywheel_job.scoring import INPUT, SCORE, open_session
from flywheel_job.signature import Input
from tests.support.training_job import launch_spec, run_here

ROWS = 1500
START = datetime(2013, 1, 1, tzinfo=UTC)
COLUMNS = (Column("v__x", "FLOAT64"), Column("v__y", "INT64"), Column("v__kind", "STRING"))
SETTINGS: dict[str, dict[str, Any]] = {
    "sklearn": {},
    "xgboost": {"n_estimators": 20, "max_depth": 3},
    "lightgbm": {"n_estimators": 20, "num_leaves": 7},
}
NEEDED = {
    "sklearn": ["skl2onnx"],
    "xgboost": ["xgboost", "onnxmltools"],
    "lightgbm": ["lightgbm", "onnxmltools"],
}


def rows(task: str) -> pl.DataFrame:
    random = np.random.default_rng(4)
    x, y = random.normal(size=ROWS), random.integers(0, 10, ROWS)
    kind = random.choice(["a", "b", "c"], ROWS)
    signal = x + 0.3 * y + np.where(kind == "a", 1.5, 0) + random.normal(size=ROWS) / 4
    label = {
        "binary": (signal > np.median(signal)).astype(float),
        "multiclass": np.digitize(signal, np.quantile(signal, [0.3, 0.7])),
        "regression": signal * 10,
    }[task]
    return pl.DataFrame(
        {
            "event_timestamp": [START + timedelta(hours=n) for n in range(ROWS)],
            "label": label,
            "v__x": [None if n % 11 == 0 else value for n, value in enumerate(x)],
            "v__y": y,
            "v__kind": [None if n % 13 == 0 else str(value) for n, value in enumerate(kind)],
        }
    )


def job(folder: Path, frame: pl.DataFrame, **params: Any) -> Outcome:
    (folder / "b" / "set").mkdir(parents=True)
    frame.write_parquet(folder / "b" / "set" / "0.parquet")
    spec = launch_spec(
        "flywheel_job.recipes.estimators.training:train",
        params=params,
        data={"train": DataSet("s3://b/set/", "projects/p/trainingSets/t", COLUMNS)},
        seed=1,
    )
    return run_here(spec, fs.SubTreeFileSystem(str(folder), fs.LocalFileSystem()))


def content(folder: Path, outcome: Outcome, name: str) -> bytes:
    store = fs.SubTreeFileSystem(str(folder), fs.LocalFileSystem())
    return objects.read(store, next(one.uri for one in outcome.artifacts if one.name == name))


@pytest.mark.parametrize("library", ["sklearn", "xgboost", "lightgbm"])
@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_an_estimator_is_fitted_exported_and_evaluated(tmp_path: Path, library: str, task: str) -> None:
    for name in NEEDED[library]:
        pytest.importorskip(name)
    frame = rows(task)
    outcome = job(tmp_path, frame, library=library, task=task, settings=SETTINGS[library])
    assert outcome.succeeded, outcome.error_message
    report = json.loads(content(tmp_path, outcome, "report.json"))
    assert report["parity"] <= 1e-4
    assert report["outputs"] == (3 if task == "multiclass" else 1)

    held = frame.tail(ROWS // 5)
    inputs = [Input(one["name"], one["data_type"], tuple(one["vocabulary"])) for one in report["inputs"]]
    session = open_session(content(tmp_path, outcome, "model.onnx"))
    scores = session.run([SCORE], {INPUT: encode(held, inputs)})[0]
    golden = report["golden"]
    tensor = np.frombuffer(base64.b64decode(golden["inputs"]), "<f4").reshape(golden["row_count"], 3)
    assert np.isnan(tensor[-1, 0])
    found = session.run([SCORE], {INPUT: tensor})[0]
    np.testing.assert_allclose(found.ravel(), np.frombuffer(base64.b64decode(golden["scores"]), "<f4"))

    importance = {key: value for key, value in report["metrics"].items() if key.startswith("importance")}
    assert {f"importance{{feature={column.name}}}" for column in COLUMNS} == importance.keys()
    assert min(importance.values()) > 0, "the labels depend on every feature"
    assert "importance" not in "".join(one.key for one in outcome.points)

    labels = held["label"].to_numpy()
    if task == "regression":
        assert report["metrics"]["rmse"] == pytest.approx(
            sk.root_mean_squared_error(labels, scores[:, 0]), rel=1e-5
        )
        assert sk.r2_score(labels, scores[:, 0]) > 0.8
    elif task == "multiclass":
        np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-5)
        assert report["metrics"]["accuracy"] == pytest.approx(
            sk.accuracy_score(labels, scores.argmax(axis=1))
        )
        assert report["metrics"]["accuracy"] > 0.75
    else:
        assert sk.roc_auc_score(labels, scores[:, 0]) > 0.93
        assert report["metrics"]["auc"] > 0.93
        assert report["calibration"]["slope"] > 0


@pytest.mark.parametrize(
    "estimator",
    [
        "sklearn.ensemble.RandomForestClassifier",
        "sklearn.ensemble.HistGradientBoostingClassifier",
        "sklearn.neural_network.MLPClassifier",
    ],
)
def test_other_estimators_of_scikit_learn_are_exported(tmp_path: Path, estimator: str) -> None:
    pytest.importorskip("skl2onnx")
    settings = {"n_estimators": 10} if "Forest" in estimator else {"max_iter": 15}
    if "MLP" in estimator:
        settings = {"hidden_layer_sizes": [8], "max_iter": 300}
    outcome = job(tmp_path, rows("binary"), library="sklearn", estimator=estimator, settings=settings)
    assert outcome.succeeded, outcome.error_message
    assert {one.key: one.value for one in outcome.points}["auc"] > 0.9


@pytest.mark.parametrize(
    ("params", "reason", "message"),
    [
        ({"library": "keras"}, "INVALID_PARAMS", "library is 'keras'"),
        ({"library": "sklearn", "estimator": "os.system"}, "INVALID_PARAMS", "no class of scikit-learn"),
        ({"library": "sklearn", "estimator": "sklearn.svm.Absent"}, "INVALID_PARAMS", "does not exist"),
        (
            {"library": "sklearn", "estimator": "sklearn.linear_model.Ridge"},
            "INVALID_PARAMS",
            "no classifier",
        ),
        ({"library": "sklearn", "settings": {"depth": 3}}, "INVALID_PARAMS", "depth"),
        ({"library": "sklearn", "task": "multiclass"}, "UNUSABLE_TRAINING_SET", "whole numbers"),
    ],
)
def test_wrong_parameters_end_the_job_with_their_names(
    tmp_path: Path, params: dict[str, Any], reason: str, message: str
) -> None:
    frame = rows("binary")
    if params.get("task"):
        frame = frame.with_columns(label=pl.col("label") + 0.5)
    outcome = job(tmp_path, frame, **params)
    assert (outcome.error_reason, message in outcome.error_message) == (reason, True), outcome.error_message


def test_metrics_are_those_of_scikit_learn() -> None:
    random = np.random.default_rng(2)
    labels, weights = random.integers(0, 4, 300), random.random(300)
    probabilities = random.dirichlet(np.ones(4), 300)
    chosen = probabilities.argmax(axis=1)
    found = multiclass_metrics(labels, probabilities, weights)
    given: dict[str, Any] = {"sample_weight": weights}
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(labels, chosen, **given))
    assert found["log_loss"] == pytest.approx(sk.log_loss(labels, probabilities, **given))
    assert found["macro_f1"] == pytest.approx(sk.f1_score(labels, chosen, average="macro", **given))
    values, truth = random.normal(size=300), random.normal(size=300)
    found = regression_metrics(truth, values, weights)
    assert found["rmse"] == pytest.approx(sk.root_mean_squared_error(truth, values, **given))
    assert found["mae"] == pytest.approx(sk.mean_absolute_error(truth, values, **given))
    assert found["r2"] == pytest.approx(sk.r2_score(truth, values, **given))
    assert regression_metrics(np.ones(3), np.zeros(3))["r2"] == 0.0
