"""EVALUATE jobs in this process: what they compute and store, and the rows and models that they refuse."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from onnx import TensorProto, helper
from sklearn import metrics as sk

from flywheel_job import objects
from flywheel_job.launch import DataSet
from flywheel_job.model_evaluation import collection
from flywheel_job.model_evaluation.params import FUNCTION, REPORT, EvaluationParams
from flywheel_job.model_file import MULTICLASS, REGRESSION, InputTensor, ModelFile
from flywheel_job.outcome import Outcome
from flywheel_job.signature import Input
from tests.support.builders.onnx_models import graph_file, three_classes
from tests.support.evaluation_models import (
    INPUTS,
    OLD_WEIGHTS,
    START,
    Store,
    linear,
    logistic,
    probability,
    rows,
)
from tests.support.training_job import launch_spec, run_here

DATA_SET = "projects/p/trainingSets/t"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def run(
    store: Store, model: ModelFile, uri: str, champion: ModelFile | None = None, **params: Any
) -> Outcome:
    models = {"model": model} | ({"champion": champion} if champion else {})
    spec = launch_spec(
        FUNCTION,
        params=json.loads(json.dumps(EvaluationParams(**{"samples": 20, **params}).params())),
        data={"rows": DataSet(uri, DATA_SET, content_hash="ab")},
        models={name: one.to_json() for name, one in models.items()},
        seed=7,
    )
    return run_here(spec, store.files)


def report_of(store: Store, outcome: Outcome) -> dict[str, Any]:
    assert outcome.succeeded, outcome.error_message
    (artifact,) = outcome.artifacts
    assert artifact.name == REPORT
    found: dict[str, Any] = json.loads(objects.read(store.files, artifact.uri))
    return found


def test_a_binary_model_and_its_champion_are_measured_on_the_same_rows(store: Store) -> None:
    frame = rows()
    uri = store.put_rows(frame, files=3)
    model = store.put_model(logistic(), calibration={"platt": {"slope": 1.1, "intercept": 0.2}})
    champion = store.put_model(logistic(OLD_WEIGHTS), name="projects/p/models/m/versions/0")
    found = report_of(store, run(store, model, uri, champion, threshold=0.4, slices=("origin",)))
    labelled = frame.filter(pl.col("label").is_not_null())
    labels = labelled["label"].to_numpy()
    raw = probability(labelled)
    ours = 1 / (1 + np.exp(-(1.1 * np.log(raw / (1 - raw)) + 0.2)))
    theirs = probability(labelled, OLD_WEIGHTS)
    assert found["rows"] == 2700
    for scores, part in ((ours, "metrics"), (theirs, "champion_metrics")):
        values = {name: one["value"] for name, one in found[part].items()}
        assert values["auc"] == pytest.approx(sk.roc_auc_score(labels, scores), abs=1e-6)
        assert values["log_loss"] == pytest.approx(sk.log_loss(labels, scores), abs=1e-6)
        assert values["f1"] == pytest.approx(sk.f1_score(labels, scores >= 0.4), abs=1e-3)
    auc = sk.roc_auc_score(labels, ours) - sk.roc_auc_score(labels, theirs)
    assert found["differences"]["auc"]["value"] == pytest.approx(auc, abs=1e-6)
    assert found["differences"]["auc"]["low"] > 0.1
    assert len(found["calibration_curve"]) == 10
    slices = found["slices"]["origin"]["values"]
    assert [one["value"] for one in slices][-1] is None
    assert sum(one["rows"] for one in slices) == 2700
    for one in slices:
        part = labelled.select(part=pl.col("origin").eq_missing(pl.lit(one["value"], pl.String)))["part"]
        expected = sk.roc_auc_score(labels[part.to_numpy()], ours[part.to_numpy()])
        assert one["metrics"]["auc"]["value"] == pytest.approx(expected, abs=1e-6)


def test_the_evidence_has_values_bounds_and_the_champion(store: Store) -> None:
    uri = store.put_rows(rows())
    model, champion = store.put_model(logistic()), store.put_model(logistic(OLD_WEIGHTS), name="c")
    outcome = run(store, model, uri, champion)
    found = report_of(store, outcome)
    values = found["evidence"]
    assert values["auc_low"] < values["auc"] < values["auc_high"]
    assert values["difference_auc"] == pytest.approx(values["auc"] - values["champion_auc"], abs=1e-12)
    assert values["difference_auc_low"] < values["difference_auc"] < values["difference_auc_high"]
    assert values["rows"] == 2700.0
    assert (found["model"], found["champion"], found["training_set"]) == (model.name, "c", DATA_SET)
    last = {point.key: point.value for point in outcome.points}
    assert {name: last[name] for name in values} == values


def test_the_evidence_has_the_slices_by_name(store: Store) -> None:
    model, champion = store.put_model(logistic()), store.put_model(logistic(OLD_WEIGHTS), name="c")
    found = report_of(store, run(store, model, store.put_rows(rows()), champion, slices=("origin",)))
    by_value = {one["value"]: one for one in found["slices"]["origin"]["values"]}
    values = found["evidence"]
    assert values["auc{origin=JFK}"] == by_value["JFK"]["metrics"]["auc"]["value"]
    assert values["champion_auc{origin=JFK}"] == by_value["JFK"]["champion_metrics"]["auc"]["value"]
    assert values["rows{origin=JFK}"] == by_value["JFK"]["rows"]
    sliced = {name.partition("{")[2] for name in values if "{" in name}
    assert sliced == {"origin=EWR}", "origin=JFK}", "origin=LGA}"}


def test_weights_count_rows_several_times_and_a_range_selects_them(store: Store) -> None:
    frame = rows()
    uri = store.put_rows(frame)
    start, end = START + timedelta(hours=500), START + timedelta(hours=2500)
    found = report_of(
        store,
        run(
            store,
            store.put_model(logistic()),
            uri,
            weight_column="weight",
            start_us=int(start.timestamp() * 1e6),
            end_us=int(end.timestamp() * 1e6),
        ),
    )
    chosen = frame.slice(500, 2000).filter(pl.col("label").is_not_null())
    assert found["rows"] == 1800
    expected = sk.roc_auc_score(chosen["label"], probability(chosen), sample_weight=chosen["weight"])
    assert found["metrics"]["auc"]["value"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("choice", "by"),
    [({"beta": 2.0}, "f_beta"), ({"false_positive_cost": 1.0, "false_negative_cost": 5.0}, "cost")],
)
def test_the_chosen_threshold_is_the_best_one(store: Store, choice: dict[str, float], by: str) -> None:
    frame = rows(600)
    found = report_of(store, run(store, store.put_model(logistic()), store.put_rows(frame), **choice))
    labelled = frame.filter(pl.col("label").is_not_null())
    labels, scores = labelled["label"].to_numpy(), probability(labelled)
    chosen = found["threshold"]
    assert (chosen["by"], chosen["used"]) == (by, chosen["chosen"]["threshold"])
    candidates = np.append(np.unique(scores), 2.0)
    if by == "f_beta":
        best = max(sk.fbeta_score(labels, scores >= t, beta=2.0) for t in candidates)
    else:
        best = min(np.mean((scores >= t) * (1 - labels) + 5.0 * (scores < t) * labels) for t in candidates)
    assert chosen["chosen"]["value"] == pytest.approx(best, abs=1e-6)


def test_a_model_uses_its_own_threshold_if_the_job_names_none(store: Store) -> None:
    model = store.put_model(logistic(), threshold=0.3)
    found = report_of(store, run(store, model, store.put_rows(rows(300))))
    assert found["threshold"]["used"] == 0.3


def test_a_multiclass_model_with_names_of_classes_is_measured(store: Store) -> None:
    frame = rows(900)
    rng = np.random.default_rng(1)
    names = np.array(["low", "mid", "high"])[rng.integers(0, 3, 900)]
    frame = frame.with_columns(code=pl.Series(rng.integers(0, 3, 900)), label=pl.Series(names))
    tensors = (
        InputTensor("AB", "FLOAT32", (Input("v__x", "FLOAT64"), Input("weight", "FLOAT64"))),
        InputTensor("CODE", "INT64", (Input("code", "INT64"),), flat=True),
    )
    model = store.put_model(
        three_classes(),
        tensors=tensors,
        output="P",
        kind=MULTICLASS,
        classes=("low", "mid", "high"),
        calibration={"temperature": {"temperature": 2.0}},
    )
    found = report_of(store, run(store, model, store.put_rows(frame)))
    logits = np.stack([frame["v__x"], frame["weight"], frame["code"]], axis=1) / 2.0
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    index = pl.Series(names).replace_strict({"low": 0, "mid": 1, "high": 2}).to_numpy()
    assert found["metrics"]["log_loss"]["value"] == pytest.approx(sk.log_loss(index, p), abs=1e-6)
    assert found["metrics"]["accuracy"]["value"] == pytest.approx((p.argmax(axis=1) == index).mean())
    assert "threshold" not in found


def test_a_regression_model_is_measured(store: Store) -> None:
    frame = rows(900).with_columns(label=pl.col("v__x") * 3 + pl.col("weight"))
    model = store.put_model(linear(np.array([[3.0], [0.0]]), []), kind=REGRESSION)
    found = report_of(store, run(store, model, store.put_rows(frame), label="label"))
    assert found["metrics"]["rmse"]["value"] == pytest.approx(
        float(np.sqrt((frame["weight"] ** 2).mean())), abs=1e-5
    )
    assert found["metrics"]["bias"]["value"] == pytest.approx(-float(frame["weight"].mean()), abs=1e-5)


def test_the_result_does_not_depend_on_the_size_of_batches(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, model = store.put_rows(rows(1000)), store.put_model(logistic())
    whole = report_of(store, run(store, model, uri, slices=("origin",)))
    monkeypatch.setattr(
        "flywheel_job.labelled_rows.stream.labelled_batches.__kwdefaults__", {"batch_rows": 7}
    )
    assert report_of(store, run(store, model, uri, slices=("origin",))) == whole


def test_rows_above_the_limit_are_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collection, "MAX_ROWS", 100)
    outcome = run(store, store.put_model(logistic()), store.put_rows(rows(300)))
    assert (outcome.error_reason, outcome.artifacts) == ("TOO_MANY_ROWS", ())


LABEL = pl.col("label")
REFUSED: dict[str, tuple[pl.DataFrame, dict[str, Any], str]] = {
    "no rows": (rows(100).head(0), {}, "no row with a label"),
    "no label": (rows(100).with_columns(label=pl.lit(None, pl.Int64)), {}, "no row with a label"),
    "no label column": (rows(100).drop("label"), {}, "no column 'label'"),
    "no input": (rows(100).drop("v__c"), {}, "no column 'v__c'"),
    "no slice column": (rows(100), {"slices": ("gate",)}, "no column 'gate'"),
    "no row in range": (rows(100), {"start_us": 2_000_000_000_000_000}, "no row with a label"),
    "labels above 1": (rows(100).with_columns(label=LABEL + 1), {}, "'2': it must be 0 or 1"),
    "labels as text": (rows(100).with_columns(label=LABEL.cast(pl.String)), {}, "labels of a BINARY"),
    "an input as text": (rows(100).with_columns(v__x=pl.lit("a lot")), {}, "another type"),
    "negative weight": (
        rows(100).with_columns(weight=-pl.col("weight")),
        {"weight_column": "weight"},
        "at least 0",
    ),
    "no weight": (
        rows(100).with_columns(weight=pl.lit(0.0)),
        {"weight_column": "weight"},
        "Every weight",
    ),
    "time as text": (
        rows(100).with_columns(event_timestamp=pl.lit("now")),
        {"end_us": 1},
        "a time range needs times",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_unusable_rows_are_refused_and_nothing_is_stored(store: Store, name: str) -> None:
    frame, params, text = REFUSED[name]
    outcome = run(store, store.put_model(logistic()), store.put_rows(frame), **params)
    assert (outcome.error_reason, outcome.artifacts) == ("UNUSABLE_EVALUATION_SET", ())
    assert text in outcome.error_message


def test_a_place_without_files_is_refused(store: Store) -> None:
    outcome = run(store, store.put_model(logistic()), "s3://b/none/")
    assert (outcome.error_reason, outcome.artifacts) == ("UNUSABLE_EVALUATION_SET", ())


def test_a_file_that_is_no_parquet_is_refused(store: Store) -> None:
    uri = store.put_rows(rows(10))
    (store.folder / "b" / "set" / "zz.parquet").write_bytes(b"not a table")
    outcome = run(store, store.put_model(logistic()), uri)
    assert outcome.error_reason == "UNUSABLE_EVALUATION_SET"
    assert "no Parquet file" in outcome.error_message


def test_a_slice_column_with_too_many_values_is_refused(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collection, "MAX_VALUES", 50)
    outcome = run(store, store.put_model(logistic()), store.put_rows(rows(100)), slices=("v__x",))
    assert outcome.error_reason == "UNUSABLE_EVALUATION_SET"


def test_unusable_models_are_refused(store: Store) -> None:
    uri = store.put_rows(rows(100))
    values = store.put_model(linear(np.ones((2, 1)) * 40, []))
    broken = store.put_model(b"no graph")
    wide = store.put_model(linear(np.ones((2, 3)), ["Softmax"]))
    three = store.put_model(linear(np.ones((3, 1)), ["Sigmoid"]))
    changed = ModelFile.from_json(values.to_json() | {"sha256": "0" * 64})
    for model, text in (
        (values, "not between 0 and 1"),
        (broken, "cannot load"),
        (wide, "3 outputs per row"),
        (three, "cannot score"),
        (changed, "does not match its digest"),
    ):
        outcome = run(store, model, uri)
        assert (outcome.error_reason, outcome.artifacts) == ("UNUSABLE_MODEL", ())
        assert text in outcome.error_message


def test_rows_that_a_tensor_cannot_hold_are_left_out_as_in_the_gateway(store: Store) -> None:
    nodes = [
        helper.make_node("Cast", ["N"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("Sigmoid", ["number"], ["SCORE"]),
    ]
    graph = graph_file(
        nodes, [("N", TensorProto.INT64, ["rows", 1])], [("SCORE", TensorProto.FLOAT, ["rows", 1])]
    )
    model = store.put_model(graph, tensors=(InputTensor("N", "INT64", (Input("n", "INT64"),)),))
    champion = store.put_model(
        linear(np.ones((1, 1)), ["Sigmoid"]),
        tensors=(InputTensor("INPUT", "FLOAT32", (Input("m", "INT64"),)),),
    )
    frame = rows(100).with_columns(
        label=pl.Series([n % 2 for n in range(100)]),
        n=pl.Series([None if n % 10 == 0 else n % 5 for n in range(100)]),
        m=pl.Series([2**24 + 1 if n == 7 else 1 for n in range(100)]),
    )
    found = report_of(store, run(store, model, store.put_rows(frame), champion))
    assert (found["rows"], found["left_out_rows"]) == (89, 11)
    kept = frame.filter(pl.col("n").is_not_null() & (pl.col("m") == 1))
    expected = sk.roc_auc_score(kept["label"], kept["n"])
    assert found["metrics"]["auc"]["value"] == pytest.approx(expected)


def test_rows_of_which_none_fits_are_refused(store: Store) -> None:
    frame = rows(100).with_columns(v__x=pl.lit(2**24 + 1), label=pl.lit(1))
    tensors = (InputTensor("INPUT", "FLOAT32", (Input("v__x", "INT64"),)),)
    model = store.put_model(linear(np.ones((1, 1)), ["Sigmoid"]), tensors=tensors)
    outcome = run(store, model, store.put_rows(frame))
    assert outcome.error_reason == "UNUSABLE_EVALUATION_SET"
    assert "100 rows do not fit" in outcome.error_message


def test_an_integer_with_a_vocabulary_is_an_index(store: Store) -> None:
    inputs = (Input("code", "INT64", ("7", "3")),)
    model = store.put_model(
        linear(np.ones((1, 1)), ["Sigmoid"]), tensors=(InputTensor("INPUT", "FLOAT32", inputs),)
    )
    codes = [(3, 7, 9)[n % 3] for n in range(100)]
    frame = rows(100).with_columns(code=pl.Series(codes), label=pl.Series([n % 2 for n in range(100)]))
    found = report_of(store, run(store, model, store.put_rows(frame)))
    z = np.array([{7: 0, 3: 1}.get(code, -1) for code in codes])
    assert found["metrics"]["score_mean"]["value"] == pytest.approx((1 / (1 + np.exp(-z))).mean())


def test_the_json_form_of_a_model_is_complete(store: Store) -> None:
    model = store.put_model(logistic(), calibration={"isotonic": {"x": [0.0, 1.0], "y": [0.1, 0.9]}})
    assert ModelFile.from_json(json.loads(json.dumps(model.to_json()))) == model
    assert model.inputs == INPUTS
