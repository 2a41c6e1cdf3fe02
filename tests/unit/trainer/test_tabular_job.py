"""Failures of a TRAIN job that the driver finds before the workers start, and the reasons of outcomes."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pyarrow import fs

from flywheel_job.driver import failure_of
from flywheel_job.errors import TooFewEventTimes
from flywheel_job.outcome import Outcome
from flywheel_job.recipes.tabular.spec import Hyperparameters, TabularSpec
from tests.support.training_job import run_here, tabular_job


def outcome_of(folder: Path, frame: pl.DataFrame, workers: int = 1) -> Outcome:
    """The outcome of a job over this training set, whose driver must fail before it starts Ray."""
    (folder / "b" / "set").mkdir(parents=True)
    frame.write_parquet(folder / "b" / "set" / "part-0.parquet")
    store = fs.SubTreeFileSystem(str(folder), fs.LocalFileSystem())
    spec = TabularSpec(
        "projects/p/trainingSets/t", "s3://b/set/", (), workers, Hyperparameters(holdout_fraction=0.2)
    )
    return run_here(tabular_job(spec), store)


def rows(label: Sequence[Any], times: Sequence[int] | None = None) -> pl.DataFrame:
    return pl.DataFrame({"label": label, "event_timestamp": times or range(len(label))})


@pytest.mark.parametrize(
    ("frame", "workers", "reason", "message"),
    [
        (rows([0, 1] * 5), 16, "TOO_FEW_TRAINING_ROWS", "8 of 10 labelled rows"),
        (rows([0, 1] * 5, [1] * 5 + [2] * 5), 1, "TOO_FEW_EVENT_TIMES", "2 distinct event times"),
        (rows([0, 1] * 4), 1, "UNUSABLE_TRAINING_SET", "8 labelled rows"),
        (rows([1] * 10), 1, "UNUSABLE_TRAINING_SET", "Every label is 1"),
        (rows(["late", "on time"] * 5), 1, "UNUSABLE_TRAINING_SET", "of type String"),
        (rows([[0], [1]] * 5), 1, "UNUSABLE_TRAINING_SET", "of type List"),
        (rows([0, 1] * 5).drop("label"), 1, "UNUSABLE_TRAINING_SET", "no column 'label'"),
    ],
)
def test_a_training_set_that_cannot_be_used_ends_the_job_with_its_reason(
    tmp_path: Path, frame: pl.DataFrame, workers: int, reason: str, message: str
) -> None:
    outcome = outcome_of(tmp_path, frame, workers)
    assert not outcome.succeeded
    assert outcome.error_reason == reason
    assert message in outcome.error_message


def test_an_error_of_a_worker_keeps_its_reason() -> None:
    # Ray sends the errors of workers pickled, and names them as causes of its own.
    raised = pickle.loads(pickle.dumps(TooFewEventTimes("2 times")))
    raised.__cause__ = IndexError("a detail")
    wrapped = RuntimeError("worker 0 failed")
    wrapped.__cause__ = raised
    found = failure_of(wrapped)
    assert (found.reason, found.message) == ("TOO_FEW_EVENT_TIMES", "2 times")
    assert failure_of(ZeroDivisionError("no rows")).reason == "TRAINING_FAILED"
