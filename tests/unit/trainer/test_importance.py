"""Permutation importance of held-out rows."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn.inspection import permutation_importance
from sklearn.linear_model import LinearRegression

from flywheel_job.artifacts import REPORT
from flywheel_job.evaluation.importance import importance_metrics
from flywheel_job.launch import Column
from tests.support.training_job import run_here, tabular_job
from tests.unit.trainer.test_sample_weights import ROWS, SPEC, Store
from tests.unit.trainer.test_sample_weights import rows as trained_rows

NAMES = ["v__noise", "v__signal", "v__constant"]


def rows_of(count: int, seed: int = 3) -> Any:
    rng = np.random.default_rng(seed)
    columns = rng.normal(size=count), rng.integers(0, 2, count), np.full(count, 7.0)
    return np.stack(columns, axis=1).astype(np.float32)


def by_signal(rows: Any) -> Any:
    """0.9 where the second feature is 1, else 0.1."""
    return np.where(rows[:, 1:2] == 1, 0.9, 0.1).astype(np.float32)


def test_only_the_feature_that_the_model_uses_is_important() -> None:
    rows = rows_of(5000)
    labels = rows[:, 1].astype(np.int64)
    found = importance_metrics(by_signal, rows, labels, None, task="binary", names=NAMES, seed=1)
    assert [f"importance{{feature={name}}}" for name in NAMES] == list(found)
    assert (0.0, 0.0) == (found["importance{feature=v__noise}"], found["importance{feature=v__constant}"])
    # A permuted label of probability 1/2 is wrong in half of the rows: ln(0.9 / 0.1) more in each of them.
    share = labels.mean()
    expected = 2 * share * (1 - share) * math.log(9)
    assert expected == pytest.approx(found["importance{feature=v__signal}"], rel=0.05)


def test_classes_are_judged_by_the_probability_of_the_label() -> None:
    rows = rows_of(5000)
    labels = rows[:, 1].astype(np.int64)

    def classes(some: Any) -> Any:
        return np.concatenate([1 - by_signal(some), by_signal(some)], axis=1)

    two = importance_metrics(classes, rows, labels, None, task="multiclass", names=NAMES, seed=1)
    one = importance_metrics(by_signal, rows, labels, None, task="binary", names=NAMES, seed=1)
    assert one == pytest.approx(two, abs=1e-6)


def test_a_regression_agrees_with_scikit_learn() -> None:
    rng = np.random.default_rng(5)
    rows = rng.normal(size=(4000, 3)).astype(np.float32)
    labels = 3 * rows[:, 0] - rows[:, 1] + rng.normal(size=4000) / 10
    model = LinearRegression().fit(rows, labels)
    expected = permutation_importance(
        model, rows, labels, scoring="neg_mean_squared_error", n_repeats=20, random_state=0
    ).importances_mean
    found = importance_metrics(
        lambda some: model.predict(some)[:, None],
        rows,
        labels,
        None,
        task="regression",
        names=["a", "b", "c"],
        seed=2,
    )
    assert expected == pytest.approx(list(found.values()), rel=0.06, abs=1e-3)


def test_rows_of_weight_zero_do_not_count() -> None:
    rows = rows_of(400)
    labels = rows[:, 1].astype(np.int64)
    flipped = np.where(np.arange(400) < 200, labels, 1 - labels)
    weights = (np.arange(400) < 200).astype(np.float64)
    right = importance_metrics(by_signal, rows, flipped, weights, task="binary", names=NAMES, seed=1)
    all_rows = importance_metrics(by_signal, rows, flipped, None, task="binary", names=NAMES, seed=1)
    assert right["importance{feature=v__signal}"] > 0.5
    assert abs(all_rows["importance{feature=v__signal}"]) < 0.2


def test_equal_arguments_give_equal_values_and_the_rows_stay_as_they_are() -> None:
    rows = rows_of(300)
    before, labels = rows.copy(), rows[:, 1].astype(np.int64)
    first = importance_metrics(by_signal, rows, labels, None, task="binary", names=NAMES, seed=9)
    again = importance_metrics(by_signal, rows, labels, None, task="binary", names=NAMES, seed=9)
    other = importance_metrics(by_signal, rows, labels, None, task="binary", names=NAMES, seed=10)
    assert first == again != other
    np.testing.assert_array_equal(before, rows)


@pytest.mark.parametrize(("features", "scored"), [(3, 20_000), (4000, 1000)])
def test_the_scored_rows_are_bounded(features: int, scored: int) -> None:
    seen = []

    def predict(some: Any) -> Any:
        seen.append(len(some))
        return np.full((len(some), 1), 0.5)

    rows = np.zeros((25_000, features), np.float32)
    names = [f"f{i}" for i in range(features)]
    importance_metrics(predict, rows, np.zeros(25_000), None, task="binary", names=names, seed=1)
    assert {scored} == set(seen)
    assert features + 1 == len(seen)


def test_a_feature_that_says_nothing_has_no_importance(tmp_path: Path) -> None:
    random = np.random.default_rng(7)
    frame = trained_rows().with_columns(
        pl.Series("v__noise", random.normal(size=ROWS)), (pl.col("v__x") > 0).cast(pl.Float64).alias("label")
    )
    store = Store(tmp_path, frame)
    columns = (*SPEC.columns, Column("v__noise", "FLOAT64"))
    hyper = replace(SPEC.hyperparameters, epochs=20, batch_size=200, learning_rate=0.02, weight_column="")
    outcome = run_here(tabular_job(replace(SPEC, columns=columns, hyperparameters=hyper)), store.files)
    assert outcome.succeeded, outcome.error_message
    metrics = json.loads(store.content(outcome, REPORT))["metrics"]
    assert metrics["importance{feature=v__x}"] > 0.5
    assert abs(metrics["importance{feature=v__noise}"]) < 0.05
