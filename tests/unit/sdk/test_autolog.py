"""Callbacks of XGBoost, LightGBM, scikit-learn and Lightning log to a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightgbm
import numpy as np
import pytest
import xgboost
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPClassifier

import flywheel as fw
from flywheel_trainer.fakes.tracking import RunRecord
from flywheel_trainer.runs.run import RunName
from tests.support.servers.restarted_trainer import RestartedTrainer

ROWS = 200
X = np.random.default_rng(0).normal(size=(ROWS, 3))
Y = (X[:, 0] + 0.1 * X[:, 1] > 0).astype(int)


@pytest.fixture(scope="module")
def trainer() -> Iterator[RestartedTrainer]:
    started = RestartedTrainer()
    started.start()
    yield started
    started.close()


@pytest.fixture
def run(trainer: RestartedTrainer, tmp_path: Path) -> Iterator[fw.Run]:
    with fw.run("late", address=trainer.address, spool=tmp_path, system_metrics=False) as started:
        yield started


def logged(trainer: RestartedTrainer, run: fw.Run) -> RunRecord:
    assert run.flush()
    assert [] == run.problems
    return trainer.runs.record(RunName.parse(run.name))


def curve(record: RunRecord, key: str) -> list[float]:
    return [point.value for (name, _), point in sorted(record.points.items()) if name == key]


def test_xgboost_logs_each_round(trainer: RestartedTrainer, run: fw.Run) -> None:
    callback = fw.autolog.xgboost(run)
    model = xgboost.XGBClassifier(
        n_estimators=5, max_depth=2, eval_metric=["logloss", "auc"], callbacks=[callback]
    )
    model.fit(X, Y, eval_set=[(X, Y)], verbose=False)
    record = logged(trainer, run)
    expected = model.evals_result()["validation_0"]
    assert expected["logloss"] == curve(record, "validation_0-logloss")
    assert expected["auc"] == curve(record, "validation_0-auc")
    assert any(key.endswith("max_depth") and value == "2" for key, value in record.run.params.items())


def test_lightgbm_logs_each_iteration(trainer: RestartedTrainer, run: fw.Run) -> None:
    params = {"objective": "binary", "num_leaves": 4, "verbose": -1, "num_threads": 1}
    history: dict[str, Any] = {}
    lightgbm.train(
        params,
        lightgbm.Dataset(X, Y),
        num_boost_round=6,
        valid_sets=[lightgbm.Dataset(X, Y)],
        callbacks=[fw.autolog.lightgbm(run), lightgbm.record_evaluation(history)],
    )
    record = logged(trainer, run)
    assert history["valid_0"]["binary_logloss"] == curve(record, "valid_0-binary_logloss")
    assert 6 == len(curve(record, "valid_0-binary_logloss"))
    assert "4" == record.run.params["lightgbm.num_leaves"]


def test_scikit_learn_logs_params_and_iterations(trainer: RestartedTrainer, run: fw.Run) -> None:
    model = LogisticRegression(C=0.5, max_iter=20)
    model.set_callbacks(fw.autolog.sklearn(run, score=True)).fit(X, Y)
    record = logged(trainer, run)
    assert "0.5" == record.run.params["LogisticRegression.C"]
    scores = curve(record, "LogisticRegression.score")
    assert len(scores) > 1
    assert scores[-1] == pytest.approx(model.score(X, Y), abs=0.02)


def test_fitted_estimators_are_logged(trainer: RestartedTrainer, run: fw.Run) -> None:
    network = MLPClassifier(
        hidden_layer_sizes=(4,), max_iter=300, tol=0.01, n_iter_no_change=3, random_state=0
    ).fit(X, Y)
    boosted = GradientBoostingClassifier(n_estimators=4, random_state=0).fit(X, Y)
    search = GridSearchCV(LogisticRegression(), {"C": [0.01, 1.0]}, cv=3).fit(X, Y)
    for model in (network, boosted, search):
        fw.autolog.log_estimator(run, model, X, Y)
    record = logged(trainer, run)
    assert network.loss_curve_ == curve(record, "MLPClassifier.loss_curve")
    assert list(boosted.train_score_) == curve(record, "GradientBoostingClassifier.train_score")
    assert list(search.cv_results_["mean_test_score"]) == curve(record, "GridSearchCV.mean_test_score")
    assert str(search.best_params_["C"]) == record.run.params["GridSearchCV.best.C"]
    assert [search.score(X, Y)] == curve(record, "GridSearchCV.score")
    assert "4" == record.run.params["GradientBoostingClassifier.n_estimators"]


def test_lightning_logs_epochs_of_rank_zero(trainer: RestartedTrainer, run: fw.Run) -> None:
    # Lightning is not installed here: these are the attributes that its Trainer and LightningModule have.
    callback = fw.autolog.lightning(run)
    module = SimpleNamespace(hparams={"lr": 0.1})
    state = SimpleNamespace(is_global_zero=True, global_step=0, callback_metrics={}, sanity_checking=True)
    callback.on_fit_start(state, module)
    state.callback_metrics = {"val_loss": 99.0}
    callback.on_validation_epoch_end(state, module)
    state.sanity_checking = False
    for epoch in range(1, 4):
        state.global_step = 10 * epoch
        state.callback_metrics = {"val_loss": 1.0 / epoch}
        callback.on_validation_epoch_end(state, module)
        state.callback_metrics = {"val_loss": 1.0 / epoch, "train_loss": 2.0 / epoch}
        callback.on_train_epoch_end(state, module)
    other = SimpleNamespace(is_global_zero=False, global_step=99, callback_metrics={"val_loss": 9.0})
    callback.on_train_epoch_end(other, module)
    record = logged(trainer, run)
    assert [1.0, 0.5, 1 / 3] == curve(record, "val_loss")
    assert [2.0, 1.0, 2 / 3] == curve(record, "train_loss")
    assert [10, 20, 30] == [step for key, step in sorted(record.points) if key == "val_loss"]
    assert "0.1" == record.run.params["lightning.lr"]
