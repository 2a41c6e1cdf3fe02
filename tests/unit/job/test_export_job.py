"""EXPORT jobs in this process: what they store, what they measure, and what the policy refuses."""

from __future__ import annotations

import json
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import polars as pl
import pytest
import torch
from scipy.optimize import minimize_scalar
from sklearn import metrics as sk
from sklearn.linear_model import LogisticRegression

from flywheel_common.scoring.calibration import Platt, Temperature, logit
from flywheel_job import objects
from flywheel_job.errors import NothingToQuantize
from flywheel_job.export import speed
from flywheel_job.export.comparison import (
    Differences,
    compare,
    fit_platt_to,
    fit_temperature_to,
    refusals,
)
from flywheel_job.export.graphs import converted, with_dynamic_rows
from flywheel_job.export.params import (
    FLOAT16,
    FLOAT32,
    FORMATS,
    FUNCTION,
    INT8_DYNAMIC,
    INT8_STATIC,
    ExportParams,
    ExportPolicy,
)
from flywheel_job.labelled_rows.sample import sample
from flywheel_job.launch import DataSet
from flywheel_job.model_file import MULTICLASS, REGRESSION, InputTensor, ModelFile
from flywheel_job.outcome import Outcome
from flywheel_job.recipes.tabular.export import to_onnx, torch_scores
from flywheel_job.recipes.tabular.network import TabularNet
from flywheel_job.scoring import open_session
from flywheel_job.signature import Input
from tests.support.evaluation_models import Store, linear, logistic, network, rows
from tests.support.training_job import launch_spec, run_here

LOOSE = ExportPolicy(1.0, 10.0, 1.0, 10.0)
WIDE = tuple(Input(f"v__{number}", "FLOAT64") for number in range(16))
TENSOR = (InputTensor("INPUT", "FLOAT32", WIDE),)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rounds: no test depends on a time."""
    monkeypatch.setattr(speed, "ROUNDS", 1)


def wide_rows(count: int = 1500, seed: int = 3) -> pl.DataFrame:
    """Rows of 16 inputs whose labels follow the network of the tests."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 16)).astype(np.float32)
    p = open_session(network((16, 32, 32, 1))).run(["SCORE"], {"INPUT": x})[0][:, 0]
    labels = (rng.random(count) < p).astype(np.int64)
    return pl.DataFrame({one.name: x[:, i] for i, one in enumerate(WIDE)} | {"label": labels})


def run(store: Store, model: ModelFile, frame: pl.DataFrame, format_: str, **params: Any) -> Outcome:
    values: dict[str, Any] = {"policy": LOOSE, "calibration_rows": 500, "evaluation_rows": 1000, **params}
    spec = launch_spec(
        FUNCTION,
        params=json.loads(json.dumps(ExportParams(format_, **values).params())),
        data={"rows": DataSet(store.put_rows(frame, files=2), "projects/p/trainingSets/t")},
        models={"model": model.to_json()},
        seed=7,
    )
    return run_here(spec, store.files)


def files_of(store: Store, outcome: Outcome) -> tuple[bytes, dict[str, Any], dict[str, Any]]:
    """Graph, model report, export report."""
    assert outcome.succeeded, outcome.error_message
    content = {one.name: objects.read(store.files, one.uri) for one in outcome.artifacts}
    assert sorted(content) == ["export.json", "model.onnx", "report.json"]
    return content["model.onnx"], json.loads(content["report.json"]), json.loads(content["export.json"])


@pytest.mark.parametrize("format_", FORMATS)
def test_each_format_is_stored_with_its_measurements(store: Store, format_: str) -> None:
    model = store.put_model(network((16, 32, 32, 1)), tensors=TENSOR, threshold=0.4)
    graph, model_report, report = files_of(store, run(store, model, wide_rows(), format_))
    assert (report["rows"], report["format"], report["threshold"]) == (1000, format_, 0.4)
    assert report["bytes"] == len(graph)
    assert report["largest_difference"] < (1e-6 if format_ == FLOAT32 else 0.1)
    assert 0 <= report["flip_share"] < 0.05
    assert set(report["microseconds"]) == set(report["source_microseconds"]) == {"1", "64"}
    assert "VNNI" in report["cpu"]
    assert (model_report["task"], model_report["threshold"]) == ("binary", 0.4)
    assert model_report["exported_from"] == model.name
    assert model_report["golden"]["row_count"] == 15
    session = open_session(graph)
    for count in (1, 3, 64):
        scores = session.run(["SCORE"], {"INPUT": np.zeros((count, 16), np.float32)})[0]
        assert scores.shape == (count, 1)


def test_metrics_of_both_models_are_those_of_the_evaluation_rows(store: Store) -> None:
    frame = wide_rows()
    graph = network((16, 32, 32, 1))
    model = store.put_model(graph, tensors=TENSOR)
    _, _, report = files_of(store, run(store, model, frame, FLOAT32))
    assert report["metrics"] == pytest.approx(report["source_metrics"], abs=1e-9)
    assert report["flip_share"] == 0.0
    x = frame.drop("label").to_numpy().astype(np.float32)
    every = open_session(graph).run(["SCORE"], {"INPUT": x})[0][:, 0]
    whole = sk.roc_auc_score(frame["label"], every)
    assert report["source_metrics"]["auc"] == pytest.approx(whole, abs=0.03)


@pytest.mark.parametrize("format_", [INT8_DYNAMIC, INT8_STATIC])
@pytest.mark.parametrize("per_channel", [False, True])
def test_eight_bit_graphs_have_integer_weights(format_: str, per_channel: bool) -> None:
    graph = network((64, 128, 128, 1))
    x = np.random.default_rng(0).normal(size=(300, 64)).astype(np.float32)
    small = converted(graph, format_, x, per_channel=per_channel)
    assert len(graph) / len(small) > 3
    kinds = {
        one.data_type for one in onnx.load_from_string(small).graph.initializer if np.prod(one.dims) > 999
    }
    assert kinds == {onnx.TensorProto.INT8}
    before, after = (open_session(one).run(["SCORE"], {"INPUT": x})[0] for one in (graph, small))
    assert 0 < np.abs(before - after).max() < 0.1


def test_scores_of_static_graphs_do_not_depend_on_the_batch() -> None:
    graph = network((16, 32, 32, 1))
    x = np.random.default_rng(0).normal(size=(64, 16)).astype(np.float32)
    session = open_session(converted(graph, INT8_STATIC, x, per_channel=False))
    together = session.run(["SCORE"], {"INPUT": x})[0]
    alone = np.concatenate([session.run(["SCORE"], {"INPUT": x[i : i + 1]})[0] for i in range(64)])
    assert np.abs(together - alone).max() < 1e-6


def test_half_precision_keeps_inputs_and_outputs(store: Store) -> None:
    graph = converted(network((16, 32, 1)), FLOAT16, np.zeros((1, 16), np.float32), per_channel=False)
    session = open_session(graph)
    assert [one.type for one in (*session.get_inputs(), *session.get_outputs())] == ["tensor(float)"] * 2
    kinds = {one.data_type for one in onnx.load_from_string(graph).graph.initializer}
    assert kinds == {onnx.TensorProto.FLOAT16}


def test_a_graph_with_other_names_and_a_fixed_batch_becomes_dynamic() -> None:
    model = onnx.load_from_string(linear(np.ones((2, 1)), ["Sigmoid"]))
    for value, name in ((model.graph.input[0], "x"), (model.graph.output[0], "y")):
        value.name = name
        value.type.tensor_type.shape.dim[0].dim_value = 1
    model.graph.node[0].input[0], model.graph.node[-1].output[0] = "x", "y"
    extra = onnx.helper.make_tensor_value_info("product", onnx.TensorProto.FLOAT, [1, 1])
    model.graph.output.append(extra)
    session = open_session(with_dynamic_rows(model.SerializeToString(), "x", "y"))
    assert [one.name for one in session.get_outputs()] == ["SCORE"]
    found = session.run(["SCORE"], {"INPUT": np.ones((5, 2), np.float32)})[0]
    assert found == pytest.approx(np.full((5, 1), 1 / (1 + np.exp(-2.0))))


@pytest.mark.parametrize("format_", FORMATS)
def test_the_graph_of_the_tabular_recipe_is_converted(format_: str) -> None:
    rng = np.random.default_rng(0)
    numbers = np.where(rng.random((500, 2)) < 0.1, np.nan, rng.normal(size=(500, 2)))
    x = np.concatenate([numbers, rng.integers(-1, 2, (500, 1))], axis=1).astype(np.float32)
    torch.manual_seed(0)
    net = TabularNet([None, None, 2], (64, 32))
    net.fit_scaling(x)
    graph = with_dynamic_rows(to_onnx(net, x[:3]), "INPUT", "SCORE")
    after = open_session(converted(graph, format_, x, per_channel=False)).run(["SCORE"], {"INPUT": x})[0]
    assert np.abs(torch_scores(net, x) - after[:, 0]).max() < 0.01


def test_a_graph_without_products_is_not_quantized() -> None:
    node = onnx.helper.make_node("Sigmoid", ["INPUT"], ["SCORE"])
    shape = ["rows", 1]
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [onnx.helper.make_tensor_value_info("INPUT", onnx.TensorProto.FLOAT, shape)],
        [onnx.helper.make_tensor_value_info("SCORE", onnx.TensorProto.FLOAT, shape)],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)])
    model.ir_version = 9
    with pytest.raises(NothingToQuantize):
        converted(model.SerializeToString(), INT8_DYNAMIC, np.ones((9, 1), np.float32), per_channel=False)


def test_the_policy_refuses_a_model_and_nothing_is_stored(store: Store) -> None:
    model = store.put_model(network((16, 32, 32, 1)), tensors=TENSOR)
    outcome = run(store, model, wide_rows(), INT8_STATIC, policy=ExportPolicy(0.0, 10.0, 1.0))
    assert (outcome.error_reason, outcome.artifacts) == ("EXPORT_REFUSED", ())
    assert "share of other decisions" in outcome.error_message
    stored = [path for path in (store.folder / "b" / "artifacts").rglob("*") if path.is_file()]
    assert [path.name for path in stored] == [model.sha256]


def differences(**changes: Any) -> Differences:
    source = {"log_loss": 0.5, "auc": 0.8, "rmse": 2.0}
    exported = source | changes.pop("exported", {})
    return Differences(100, changes.pop("flip_share", 0.0), 0.0, source, exported)


@pytest.mark.parametrize(
    ("kind", "changes", "refused"),
    [
        ("BINARY", {}, ""),
        ("BINARY", {"flip_share": 0.02}, "share of other decisions is 0.02"),
        ("BINARY", {"exported": {"log_loss": 0.52}}, "increase of the log-loss is 0.02"),
        ("BINARY", {"exported": {"log_loss": 0.4, "auc": 0.9}}, ""),
        ("BINARY", {"exported": {"auc": 0.79}}, "loss of AUC is 0.01"),
        ("BINARY", {"exported": {"auc": float("nan")}}, ""),
        ("MULTICLASS", {"flip_share": 0.02}, "share of other decisions"),
        ("MULTICLASS", {"exported": {"log_loss": 0.52}}, "log-loss"),
        ("REGRESSION", {"exported": {"rmse": 2.1}}, "relative increase of the RMSE is 0.05"),
        ("REGRESSION", {"exported": {"log_loss": 9.0}}, ""),
    ],
)
def test_each_bound_of_the_policy_holds_for_its_kind(
    kind: str, changes: dict[str, Any], refused: str
) -> None:
    found = refusals(kind, differences(**changes), ExportPolicy())
    assert (refused in found[0]) if refused else found == []


def test_flips_are_decisions_that_differ() -> None:
    labels = np.array([0.0, 1.0, 1.0, 0.0])
    source, exported = np.array([0.1, 0.4, 0.6, 0.5]), np.array([0.2, 0.6, 0.7, 0.49])
    assert compare("BINARY", labels, source, exported, 0.5).flip_share == 0.5
    p, q = np.array([[0.6, 0.4], [0.3, 0.7]]), np.array([[0.4, 0.6], [0.2, 0.8]])
    assert compare("MULTICLASS", np.array([0, 1]), p, q, None).flip_share == 0.5
    assert compare("REGRESSION", labels, source, exported, None).flip_share == 0.0


def test_the_calibration_is_nearest_to_the_probabilities_of_the_source() -> None:
    rng = np.random.default_rng(1)
    raw = rng.uniform(0.05, 0.95, 3000)
    source = Platt(0.7, -0.4).apply(raw)
    assert astuple(fit_platt_to(source, raw)) == pytest.approx((0.7, -0.4), abs=1e-6)
    shifted = Platt(1.3, 0.5).apply(np.clip(raw + rng.normal(0, 0.01, 3000), 0.01, 0.99))
    expected = LogisticRegression(C=1e12, tol=1e-10).fit(
        np.tile(logit(shifted), 2)[:, None],
        np.repeat([1, 0], 3000),
        sample_weight=np.concatenate([source, 1 - source]),
    )
    found = fit_platt_to(source, shifted)
    assert found.slope == pytest.approx(expected.coef_[0, 0], abs=1e-4)
    assert found.intercept == pytest.approx(expected.intercept_[0], abs=1e-4)


def test_the_temperature_is_nearest_to_the_probabilities_of_the_source() -> None:
    rng = np.random.default_rng(1)
    raw = rng.dirichlet(np.ones(3), 500)
    source = Temperature(1.7).apply(raw)
    assert fit_temperature_to(source, raw).temperature == pytest.approx(1.7, abs=1e-4)
    other = Temperature(0.8).apply(np.clip(raw + rng.uniform(0, 0.05, raw.shape), 0, 1))

    def loss(temperature: float) -> float:
        p = other ** (1 / temperature)
        return float(-(source * np.log(p / p.sum(axis=1, keepdims=True))).sum(axis=1).mean())

    expected = minimize_scalar(loss, bounds=(0.1, 10), method="bounded", options={"xatol": 1e-8}).x
    assert fit_temperature_to(source, other).temperature == pytest.approx(expected, abs=1e-4)


def test_a_calibrated_source_is_compared_calibrated(store: Store) -> None:
    calibration = {"isotonic": {"x": [0.0, 0.5, 1.0], "y": [0.0, 0.3, 1.0]}}
    model = store.put_model(network((16, 32, 32, 1)), tensors=TENSOR, calibration=calibration)
    _, model_report, report = files_of(store, run(store, model, wide_rows(), INT8_STATIC))
    assert set(model_report["calibration"]) == {"slope", "intercept"}
    assert report["metrics"]["score_mean"] == pytest.approx(report["source_metrics"]["score_mean"], abs=0.01)
    _, same, _ = files_of(store, run(store, model, wide_rows(), FLOAT32))
    assert same["calibration"] == calibration


def test_multiclass_and_regression_models_are_exported(store: Store) -> None:
    rng = np.random.default_rng(2)
    frame = wide_rows().with_columns(label=pl.Series(rng.integers(0, 3, 1500)))
    several = store.put_model(
        network((16, 32, 3), last="Softmax"), tensors=TENSOR, kind=MULTICLASS, classes=("a", "b", "c")
    )
    _, model_report, report = files_of(store, run(store, several, frame, INT8_DYNAMIC))
    assert (model_report["outputs"], model_report["task"]) == (3, "multiclass")
    assert report["metrics"]["log_loss"] == pytest.approx(report["source_metrics"]["log_loss"], abs=0.05)
    value = store.put_model(network((16, 32, 1), last=""), tensors=TENSOR, kind=REGRESSION)
    _, model_report, report = files_of(store, run(store, value, frame, INT8_STATIC))
    assert "calibration" not in model_report
    assert report["metrics"]["rmse"] == pytest.approx(report["source_metrics"]["rmse"], rel=0.05)


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (wide_rows(15), "UNUSABLE_EVALUATION_SET"),
        (wide_rows(100).head(0), "UNUSABLE_EVALUATION_SET"),
        (wide_rows(100).drop("v__3"), "UNUSABLE_EVALUATION_SET"),
        (wide_rows(100).drop("label"), "UNUSABLE_EVALUATION_SET"),
        (wide_rows(100).with_columns(label=pl.lit("late")), "UNUSABLE_EVALUATION_SET"),
    ],
)
def test_unusable_rows_are_refused(store: Store, frame: pl.DataFrame, reason: str) -> None:
    model = store.put_model(network((16, 32, 32, 1)), tensors=TENSOR)
    outcome = run(store, model, frame, INT8_STATIC)
    assert (outcome.error_reason, outcome.artifacts) == (reason, ())


def test_a_logistic_regression_with_categories_is_exported(store: Store) -> None:
    model = store.put_model(logistic())
    graph, model_report, _ = files_of(store, run(store, model, rows(), INT8_DYNAMIC))
    assert graph
    assert [one["vocabulary"] for one in model_report["inputs"]] == [[], ["AA", "BB"]]


def test_a_sample_is_uniform_and_has_no_row_twice() -> None:
    counts = np.zeros(40)
    for seed in range(400):
        frames = (pl.DataFrame({"n": np.arange(start, start + 8)}) for start in range(0, 40, 8))
        drawn = sample(frames, 10, np.random.default_rng(seed))["n"].to_numpy()
        assert len(np.unique(drawn)) == 10
        counts[drawn] += 1
    # 400 samples of a quarter of the rows: 100 ± 8.7 each.
    assert np.abs(counts - 100).max() < 5 * 8.7
    assert sample(iter([]), 5, np.random.default_rng(0)).height == 0
