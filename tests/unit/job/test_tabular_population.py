"""Population-based training of the tabular recipe: lineage, crashes and the replay of the winner."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from pyarrow import fs

from flywheel_job import objects
from flywheel_job.launch import Column, LaunchSpec, Segment
from flywheel_job.recipes.tabular.spec import Hyperparameters, TabularSpec
from flywheel_job.tuning.driver import Study, conclude, last_values
from flywheel_job.tuning.launch import TuneLaunch
from flywheel_job.tuning.settings import Direction, FloatRange, Objective, Population, TuneSettings
from flywheel_job.tuning.trial import Trial, best_trials, schedule_of
from tests.support.training_job import tabular_job
from tests.support.tuning import CodeWorkers, Killed, Points, StoredTrials, run_here

ROWS = 300
START = datetime(2013, 1, 1, tzinfo=UTC)
SPACE = {
    "learning_rate": FloatRange(1e-4, 0.1, log=True),
    "weight_decay": FloatRange(0.0, 0.1),
    "dropout": FloatRange(0.0, 0.5),
}
LOSS = Objective("val_loss", Direction.MINIMIZE)
CHOSEN = TuneSettings(SPACE, (LOSS,), Population(3, 2, 3), seed=5)
SMALL = replace(CHOSEN, algorithm=Population(3, 1, 2))


def prepared(folder: Path, task: Any) -> tuple[fs.FileSystem, LaunchSpec]:
    """A store with the rows of a task, and what a member of a population trains."""
    random = np.random.default_rng(4)
    a, b = random.normal(size=ROWS), random.normal(size=ROWS)
    values = a - b + random.normal(size=ROWS) / 2
    label = {"binary": (values > 0).astype(float), "regression": 30 * values - 200}[task]
    times = [START + timedelta(hours=n) for n in range(ROWS)]
    (folder / "b" / "set").mkdir(parents=True)
    frame = pl.DataFrame({"event_timestamp": times, "v__a": a, "v__b": b, "label": label})
    frame.write_parquet(folder / "b" / "set" / "part-0.parquet")
    columns = (Column("v__a", "FLOAT64"), Column("v__b", "FLOAT64"))
    hyper = Hyperparameters(hidden_sizes=(8,), epochs=6, batch_size=32, seed=2, task=task)
    spec = tabular_job(TabularSpec("projects/p/trainingSets/t", "s3://b/set/", columns, 1, hyper))
    return fs.SubTreeFileSystem(str(folder), fs.LocalFileSystem()), replace(spec, check="")


def search(
    store: fs.FileSystem, base: LaunchSpec, chosen: TuneSettings, kills: dict[int, str]
) -> list[Trial]:
    """The trials; the driver starts anew whenever it is killed."""
    stored = StoredTrials(kills, store)
    while True:
        try:
            launch = TuneLaunch(replace(base, export=""), chosen)
            outcome = conclude(Study(launch, stored, CodeWorkers(store), Points()))
        except Killed:
            continue
        assert outcome.succeeded, outcome.error_message
        return stored.load()


@pytest.mark.parametrize("task", ["binary", "regression"])
def test_the_winner_of_a_population_is_replayed_with_its_score(tmp_path: Path, task: str) -> None:
    store, base = prepared(tmp_path, task)
    trials = search(store, base, CHOSEN, {})
    assert [[one.until_step for one in trial.segments] for trial in trials] == [[2, 4, 6]] * 3
    moved = [
        (trial, one) for trial in trials for one in trial.segments[1:] if one.source_trial != trial.number
    ]
    assert moved, "the worst member of each generation continues from the best one"
    for trial, one in moved:
        source = next(other for other in trials if other.number == one.source_trial)
        assert one.params != source.segments[one.generation - 1].params
        assert one.params.keys() == SPACE.keys() == trial.params.keys()

    [best] = best_trials(trials, CHOSEN.objectives)
    schedule = tuple(Segment(one.until_step, one.params) for one in schedule_of(trials, best.number))
    replay = replace(
        base, checkpoint_uri="s3://b/replay", outcome_uri="s3://b/replay.json", schedule=schedule
    )
    outcome = run_here(replay, store)
    assert last_values(outcome)["val_loss"] == best.values[0]
    assert [point.step for point in outcome.points if point.key == "val_loss"] == [1, 2, 3, 4, 5, 6]
    assert {one.name for one in outcome.artifacts} == {"model.onnx", "report.json", "weights.pt"}
    # The parameters of a segment are used: with those of the first one throughout, the loss is another one.
    constant = tuple(Segment(one.until_step, schedule[0].params) for one in schedule)
    if constant != schedule:
        other = replace(replay, checkpoint_uri="s3://b/other", outcome_uri="s3://b/o.json", schedule=constant)
        assert last_values(run_here(other, store))["val_loss"] != best.values[0]


def test_a_killed_driver_ends_with_the_trials_of_an_undisturbed_one(tmp_path: Path) -> None:
    store, base = prepared(tmp_path, "binary")
    undisturbed = search(store, base, SMALL, {})
    objects.delete(store, base.checkpoint_uri)
    assert search(store, base, SMALL, {4: "before", 7: "after"}) == undisturbed


def test_a_segment_that_was_interrupted_continues_from_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process dies in the second segment, between two checkpoints."""
    store, base = prepared(tmp_path, "binary")
    segments = (Segment(2, {"learning_rate": 0.03}), Segment(6, {"learning_rate": 0.003, "dropout": 0.2}))
    whole = run_here(replace(base, schedule=segments, checkpoint_uri="s3://b/whole"), store)
    monkeypatch.setattr("flywheel_job.recipes.tabular.training.SAVE_SECONDS", 0.0)
    broken = replace(base, schedule=segments, checkpoint_uri="s3://b/broken")
    run_here(replace(broken, schedule=(segments[0], replace(segments[1], until_step=4))), store)
    again = run_here(replace(broken, attempt=2), store)
    assert last_values(again)["val_loss"] == last_values(whole)["val_loss"]
    assert [point.step for point in again.points if point.key == "val_loss"] == [5, 6]
