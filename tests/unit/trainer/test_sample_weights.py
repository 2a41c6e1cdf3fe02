"""Sample weights of the tabular recipe: which are refused, and what they change."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from pyarrow import fs
from sklearn import metrics as sk

from flywheel_job import objects
from flywheel_job.artifacts import MODEL, REPORT
from flywheel_job.errors import UnusableTrainingSet
from flywheel_job.launch import Column, DataSet
from flywheel_job.model_evaluation.params import FUNCTION, EvaluationParams
from flywheel_job.model_evaluation.params import REPORT as EVALUATION
from flywheel_job.outcome import Outcome
from flywheel_job.recipes.tabular.network import TabularNet
from flywheel_job.recipes.tabular.preparation import InitialWeights, prepare
from flywheel_job.recipes.tabular.spec import Hyperparameters, TabularSpec
from flywheel_job.scoring import onnx_scores, open_session
from flywheel_trainer.jobs.errors import InvalidSpec
from flywheel_trainer.jobs.models import model_of_report
from flywheel_trainer.jobs.train_spec import TrainSpec, check_weight_column
from tests.support.training_job import launch_spec, run_here, tabular_job

ROWS = 2000
START = datetime(2013, 1, 1, tzinfo=UTC)
SPEC = TabularSpec(
    training_set="projects/p/trainingSets/t",
    uri="s3://b/set/",
    columns=(Column("v__x", "FLOAT64"),),
    hyperparameters=Hyperparameters(hidden_sizes=(8,), epochs=1, batch_size=ROWS, weight_column="w"),
)


def rows(seed: int = 1) -> pl.DataFrame:
    """Labels that depend on x in the heavy rows, and are the contrary of that in the light rows."""
    random = np.random.default_rng(seed)
    x, heavy = random.normal(size=ROWS), random.random(ROWS) < 0.4
    noisy = x + random.normal(size=ROWS) / 4 > 0
    return pl.DataFrame(
        {
            "event_timestamp": [START + timedelta(hours=int(i)) for i in random.permutation(ROWS)],
            "w": np.where(heavy, random.integers(10, 20, ROWS), random.integers(0, 2, ROWS)).astype(float),
            "v__x": x,
            "label": (noisy == heavy).astype(float),
        }
    )


class Store:
    """A bucket `b` in a folder, with a training set."""

    def __init__(self, folder: Path, frame: pl.DataFrame) -> None:
        self.frame = frame
        self.files = fs.SubTreeFileSystem(str(folder), fs.LocalFileSystem())
        for name in ("set", *(f"artifacts/{n:02x}" for n in range(256))):
            self.files.create_dir(f"b/{name}")
        frame.write_parquet(folder / "b" / "set" / "part-0.parquet")

    def train(self, **hyperparameters: Any) -> Outcome:
        outcome = run_here(tabular_job(spec(**hyperparameters)), self.files)
        assert outcome.succeeded, outcome.error_message
        return outcome

    def content(self, outcome: Outcome, name: str) -> bytes:
        return objects.read(self.files, next(a.uri for a in outcome.artifacts if a.name == name))


def spec(**hyperparameters: Any) -> TabularSpec:
    return replace(SPEC, hyperparameters=replace(SPEC.hyperparameters, **hyperparameters))


def points(outcome: Outcome, key: str) -> list[float]:
    return [p.value for p in outcome.points if p.key == key]


def as_tensor(frame: pl.DataFrame) -> np.ndarray:
    return frame.select("v__x").to_numpy().astype(np.float32)


def test_the_loss_and_the_metrics_are_those_of_scikit_learn_with_weights(tmp_path: Path) -> None:
    store = Store(tmp_path, rows())
    outcome = store.train()
    ordered = store.frame.sort("event_timestamp")
    report = json.loads(store.content(outcome, REPORT))
    split = report["split"]
    end, cut = split["train_end"], split["calibration_end"]

    # One batch per epoch: the loss of the first epoch is that of the initial network.
    torch.manual_seed(0)
    initial = TabularNet([None], (8,))
    initial.fit_scaling(as_tensor(ordered)[:end])
    with torch.no_grad():
        scores = torch.sigmoid(initial(torch.from_numpy(as_tensor(ordered)[:end]))[:, 0].double()).numpy()
    labels, weights = ordered["label"].to_numpy(), ordered["w"].to_numpy()
    expected = sk.log_loss(labels[:end], scores, sample_weight=weights[:end])
    assert points(outcome, "train_loss") == pytest.approx([expected], rel=1e-5)
    assert abs(expected - sk.log_loss(labels[:end], scores)) > 1e-3

    raw = onnx_scores(open_session(store.content(outcome, MODEL)), as_tensor(ordered)).astype(float)
    held = slice(end, cut)
    expected = sk.log_loss(labels[held], raw[held], sample_weight=weights[held])
    assert points(outcome, "val_loss") == pytest.approx([expected], rel=1e-5)
    slope, intercept = report["calibration"]["slope"], report["calibration"]["intercept"]
    calibrated = 1 / (1 + np.exp(-(slope * np.log(raw / (1 - raw)) + intercept)))
    newest = slice(cut, ROWS)
    given: dict[str, Any] = {"sample_weight": weights[newest]}
    found = report["metrics"]
    assert found["log_loss"] == pytest.approx(
        sk.log_loss(labels[newest], calibrated[newest], **given), rel=1e-5
    )
    assert found["auc"] == pytest.approx(
        sk.roc_auc_score(labels[newest], calibrated[newest], **given), abs=1e-6
    )
    decided = calibrated[newest] >= report["threshold"]
    assert found["f1"] == pytest.approx(sk.f1_score(labels[newest], decided, **given), abs=1e-6)
    assert found["rows"] == ROWS - cut
    assert outcome.params["weight_column"] == "w"


def test_the_network_learns_what_the_heavy_rows_say(tmp_path: Path) -> None:
    store = Store(tmp_path, rows())
    settings: dict[str, Any] = {"epochs": 8, "batch_size": 64, "learning_rate": 0.01}
    probe = np.float32([[-1], [1]])
    low, high = onnx_scores(open_session(store.content(store.train(**settings), MODEL)), probe)
    assert low < 0.4 < 0.6 < high
    ignored = store.train(**settings, weight_column="")
    low, high = onnx_scores(open_session(store.content(ignored, MODEL)), probe)
    # Most rows say the contrary.
    assert low > high
    assert "weight_column" not in ignored.params


def test_the_scale_of_the_weights_does_not_change_the_network(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one = Store(tmp_path / "one", rows())
    # A power of two, so that no rounding differs.
    two = Store(tmp_path / "two", rows().with_columns(pl.col("w") * 1024))
    assert one.content(one.train(), MODEL) == two.content(two.train(), MODEL)


def test_an_evaluation_of_the_same_rows_gives_the_metrics_of_the_report(tmp_path: Path) -> None:
    store = Store(tmp_path, rows())
    outcome = store.train(epochs=3)
    report = json.loads(store.content(outcome, REPORT))
    graph = next(one for one in outcome.artifacts if one.name == MODEL)
    start = report["split"]["evaluation_start_us"]
    evaluation = launch_spec(
        FUNCTION,
        params=EvaluationParams(weight_column="w", start_us=start, samples=0).params(),
        models={"model": model_of_report("r", graph.uri, graph.sha256, report, "").file.to_json()},
        data={"rows": DataSet("s3://b/set/", "t", ())},
    )
    found = json.loads(store.content(run_here(evaluation, store.files), EVALUATION))["evidence"]
    split = report["split"]
    assert found["rows"] == split["rows"] - split["calibration_end"]
    for name, tolerance in (("log_loss", 1e-6), ("auc", 1e-9), ("ece", 1e-5), ("f1", 1e-9)):
        assert found[name] == pytest.approx(report["metrics"][name], abs=tolerance), name


def changed(place: int, value: float | None) -> pl.DataFrame:
    """The rows with another weight in one place."""
    frame = rows()
    weights = frame["w"].to_list()
    weights[place] = value
    return frame.with_columns(pl.Series("w", weights, dtype=pl.Float64))


NEWEST = pl.col("event_timestamp") >= START + timedelta(hours=ROWS - 240)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (changed(7, -0.5), "'w' has the value -0.5 in a row of time 2013"),
        (changed(7, None), "the value None"),
        (changed(7, float("nan")), "the value nan"),
        (changed(7, float("inf")), "the value inf"),
        (rows().with_columns(w=pl.lit(0.0)), "Every weight in 'w' is 0"),
        (rows().with_columns(w=pl.when(NEWEST).then(0.0).otherwise("w")), "evaluation rows is 0"),
        (rows().with_columns(w=pl.col("label")), "Every label with a weight is 1"),
        (rows().with_columns(w=pl.lit("heavy")), "stored as String"),
        (rows().drop("w"), "no column 'w'"),
    ],
    ids=[
        "negative",
        "null",
        "nan",
        "infinite",
        "zero",
        "no evaluation",
        "one class",
        "text",
        "absent",
    ],
)
def test_unusable_weights_are_refused_with_the_reason(
    tmp_path: Path, frame: pl.DataFrame, message: str
) -> None:
    store = Store(tmp_path, frame)
    with pytest.raises(UnusableTrainingSet, match=message):
        prepare(SPEC, store.files, InitialWeights({}, None, "none"))


def test_weights_may_be_whole_numbers_or_flags(tmp_path: Path) -> None:
    for dtype in (pl.Int64, pl.Boolean):
        frame = rows().with_columns(pl.col("w").cast(dtype))
        folder = tmp_path / str(dtype)
        folder.mkdir()
        data = prepare(SPEC, Store(folder, frame).files, InitialWeights({}, None, "none"))
        ordered = frame.sort("event_timestamp")["w"].cast(pl.Float64).to_list()
        assert data.weights is not None
        assert [w / max(ordered) for w in ordered] == data.weights.tolist()


@pytest.mark.parametrize(
    ("column", "message"),
    [("w", ""), ("", ""), ("v__x", "no extra column"), ("note", "weights are numbers")],
)
def test_a_weight_column_must_be_a_numeric_extra_column(column: str, message: str) -> None:
    wanted = TrainSpec("late", "projects/p/trainingSets/t", Hyperparameters(weight_column=column))
    extras = (Column("w", "FLOAT32"), Column("note", "STRING"))
    if not message:
        check_weight_column(wanted, extras)
        return
    with pytest.raises(InvalidSpec, match=message) as refused:
        check_weight_column(wanted, extras)
    assert "train.tabular.weight_column" == refused.value.metadata["field"]
