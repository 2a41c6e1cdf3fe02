"""The driver of a TUNE job, whose trials run in the test's process."""

from __future__ import annotations

import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from flywheel_job import objects
from flywheel_job.errors import InvalidFunction
from flywheel_job.launch import LaunchSpec, Segment, Source
from flywheel_job.outcome import Outcome
from flywheel_job.tuning.driver import Ended, Lost, Reported, Study, conclude, last_values
from flywheel_job.tuning.launch import TuneLaunch
from flywheel_job.tuning.settings import (
    Constraint,
    Direction,
    FloatRange,
    Objective,
    Population,
    RandomSearch,
    Tpe,
    TuneSettings,
)
from flywheel_job.tuning.trial import Trial, TrialState, best_trials, schedule_of
from tests.support.jobs_source import archived
from tests.support.training_job import launch_spec
from tests.support.tuning import (
    CodeWorkers,
    Evaluate,
    FunctionWorkers,
    Killed,
    Points,
    StoredTrials,
    run_here,
)

LOSS = Objective("loss", Direction.MINIMIZE)
SPACE = {"x": FloatRange(-2, 2), "y": FloatRange(-2, 2)}
BASE = launch_spec("unused:unused", params={"y": 9.0, "epochs": 3}, failure_uri="s3://b/failure.json")


def settings(**changes: object) -> TuneSettings:
    made = TuneSettings(SPACE, (LOSS,), Tpe(5), max_trials=100, seed=3)
    return replace(made, **changes)  # type: ignore[arg-type]


def parabola(spec: LaunchSpec) -> dict[str, float]:
    x, y = spec.params["x"], spec.params["y"]
    return {"loss": (x - 1) ** 2 + (y + 1) ** 2, "cost": abs(x)}


def tune(
    chosen: TuneSettings, evaluate: Evaluate = parabola, trials: StoredTrials | None = None, losses: int = 0
) -> tuple[Outcome, list[Trial]]:
    """Run the driver; start it anew whenever it is killed."""
    stored = trials or StoredTrials()
    while True:
        try:
            study = Study(TuneLaunch(BASE, chosen), stored, FunctionWorkers(evaluate, losses), Points())
            return conclude(study), stored.load()
        except Killed:
            continue


def test_trials_get_their_params_and_a_run_of_their_own() -> None:
    seen = []

    def evaluate(spec: LaunchSpec) -> dict[str, float]:
        seen.append(spec)
        return parabola(spec)

    outcome, trials = tune(settings(max_trials=3), evaluate)
    assert outcome.succeeded
    assert [spec.run for spec in seen] == [f"projects/p/runs/r-{number}" for number in range(3)]
    assert [spec.params for spec in seen] == [{"epochs": 3} | trial.params for trial in trials]
    assert len({spec.checkpoint_uri for spec in seen}) == len({spec.outcome_uri for spec in seen}) == 3
    best = min(trials, key=lambda trial: trial.values)
    assert outcome.params == {"best_trial": str(best.number)}
    assert last_values(outcome) == {"finished_trials": 3.0, "best_loss": best.values[0]}


def test_a_killed_driver_suggests_what_an_undisturbed_one_does() -> None:
    _, undisturbed = tune(settings())
    assert [trial.number for trial in undisturbed] == list(range(100))
    assert all(trial.state is TrialState.SUCCEEDED for trial in undisturbed)
    assert len({trial.params_json for trial in undisturbed}) == 100
    # Writes 61 and 62 are the start and the end of trial 30.
    for writes in ({61: "before"}, {61: "after"}, {62: "before"}, {62: "after"}):
        _, again = tune(settings(), trials=StoredTrials(writes))
        assert again == undisturbed
    kills = {number: random.Random(number).choice(["before", "after"]) for number in (20, 77, 151)}
    _, again = tune(settings(), trials=StoredTrials(kills))
    assert again == undisturbed


def test_parallel_trials_are_all_finished_after_kills() -> None:
    chosen = settings(parallel_trials=4)
    stored = StoredTrials({30: "before", 61: "after", 120: "before"})
    _, trials = tune(chosen, trials=stored)
    assert [trial.number for trial in trials] == list(range(100))
    assert all(trial.state is TrialState.SUCCEEDED for trial in trials)
    workers = FunctionWorkers(parabola)
    assert conclude(Study(TuneLaunch(BASE, chosen), StoredTrials(), workers, Points())).succeeded
    assert workers.most_at_once == 4


def test_tpe_is_better_than_random_values() -> None:
    found = {}
    for algorithm in (Tpe(5), RandomSearch()):
        scores = []
        for seed in range(5):
            _, trials = tune(settings(algorithm=algorithm, seed=seed, max_trials=60))
            scores.append(best_trials(trials, [LOSS])[0].values[0])
        found[type(algorithm)] = sum(scores) / len(scores)
    assert found[Tpe] < found[RandomSearch] / 2


def test_a_broken_constraint_is_never_the_best() -> None:
    chosen = settings(constraints=(Constraint("cost", at_most=0.5),), max_trials=60)
    outcome, trials = tune(chosen)
    [best] = best_trials(trials, [LOSS])
    assert abs(best.params["x"]) <= 0.5
    assert outcome.params == {"best_trial": str(best.number)}
    assert min(trial.values[0] for trial in trials) < best.values[0]


def test_an_absent_metric_ends_the_job_and_names_the_others() -> None:
    outcome, trials = tune(settings(objectives=(Objective("auc", Direction.MAXIMIZE),)))
    assert outcome.error_reason == "UNKNOWN_METRIC"
    assert "'auc'; it logged: loss, cost." in outcome.error_message
    assert [trial.error_reason for trial in trials] == ["UNKNOWN_METRIC"]


def test_failed_trials_are_permitted_up_to_their_limit() -> None:
    def fails_below_zero(spec: LaunchSpec) -> dict[str, float] | Exception:
        return ValueError("negative") if spec.params["x"] < 0 else parabola(spec)

    chosen = settings(algorithm=RandomSearch(), max_trials=20, max_failed_trials=50)
    outcome, trials = tune(chosen, fails_below_zero)
    assert outcome.succeeded
    failed = [trial for trial in trials if trial.state is TrialState.FAILED]
    assert [trial.params["x"] < 0 for trial in trials] == [trial in failed for trial in trials]
    assert {trial.error_reason for trial in failed} == {"TRAINING_FAILED"}
    outcome, trials = tune(replace(chosen, max_failed_trials=2), fails_below_zero)
    assert (outcome.error_reason, "ValueError: negative" in outcome.error_message) == (
        "TOO_MANY_FAILED_TRIALS",
        True,
    )
    assert sum(trial.state is TrialState.FAILED for trial in trials) == 2


def test_a_job_without_a_successful_trial_fails() -> None:
    outcome, _ = tune(settings(max_trials=3), lambda _: ValueError("never"))
    assert outcome.error_reason == "NO_SUCCESSFUL_TRIAL"
    assert "Trial 2: TRAINING_FAILED: ValueError: never" in outcome.error_message


def test_a_lost_worker_is_repeated_at_most_twice() -> None:
    outcome, trials = tune(settings(max_trials=2), losses=2)
    assert [trial.state for trial in trials] == [TrialState.SUCCEEDED] * 2
    outcome, trials = tune(settings(max_trials=2), losses=3)
    assert (trials[0].error_reason, trials[1].state) == ("WORKER_LOST", TrialState.SUCCEEDED)
    assert outcome.succeeded


CODE = """
import torch


def train(ctx):
    net = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    restored = ctx.restore(net, optimizer)
    for group in optimizer.param_groups:
        group["lr"] = ctx.params["rate"]
    target = torch.tensor([[3.0, -2.0]])
    step = restored.step if restored else 0
    while step < ctx.params["steps"]:
        step += 1
        rows = torch.randn(16, 2)
        loss = ((net(rows) - rows @ target.T) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 5 == 0:
            ctx.log({"loss": loss.item()}, step)
            ctx.save(step, net, optimizer)


def export(ctx):
    net = torch.nn.Linear(2, 1)
    restored = ctx.restore(net)
    ctx.artifact("weights", str((restored.step, net.weight.tolist())).encode())
"""


def test_the_schedule_of_the_winner_reproduces_its_score(tmp_path: Path) -> None:
    store = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    source, digest = archived({"train.py": CODE})
    objects.write(store, "s3://b/source", source)
    base = replace(
        BASE,
        function="train.py:train",
        export="train.py:export",
        source=Source("s3://b/source", digest),
        params={"steps": 100},
        seed=5,
    )
    chosen = settings(
        space={"rate": FloatRange(1e-4, 0.3, log=True)}, algorithm=Population(6, 10, 4), max_trials=0
    )
    results = []
    for kills in ({}, {9: "before", 22: "after", 35: "before"}):
        stored = StoredTrials(kills, store)
        while True:
            workers = CodeWorkers(store)
            try:
                outcome = conclude(Study(TuneLaunch(base, chosen), stored, workers, Points()))
                break
            except Killed:
                continue
        sys.modules.pop("train", None)
        assert outcome.succeeded, outcome.error_message
        results.append(stored.load())
    trials = results[0]
    assert results[1] == trials
    assert [len(trial.segments) for trial in trials] == [4] * 6
    sources = {
        segment.source_trial
        for trial in trials
        for segment in trial.segments[1:]
        if segment.source_trial != trial.number
    }
    assert sources
    [best] = best_trials(trials, chosen.objectives)
    schedule = schedule_of(trials, best.number)
    assert [segment.until_step for segment in schedule] == [10, 20, 30, 40]
    replay = replace(
        base,
        checkpoint_uri="s3://b/replay",
        outcome_uri="s3://b/replay.json",
        schedule=tuple(Segment(one.until_step, one.params) for one in schedule),
    )
    outcome = run_here(replay, store)
    sys.modules.pop("train", None)
    assert last_values(outcome)["loss"] == best.values[0]
    assert [point.step for point in outcome.points if point.key == "loss"] == [5, 10, 15, 20, 25, 30, 35, 40]
    [weights] = outcome.artifacts
    assert objects.read(store, weights.uri).startswith(b"(40, ")


def test_code_that_ends_before_its_segment_fails(tmp_path: Path) -> None:
    store = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    source, digest = archived({"train.py": CODE})
    objects.write(store, "s3://b/source", source)
    base = replace(
        BASE, function="train.py:train", source=Source("s3://b/source", digest), params={"steps": 5}
    )
    chosen = settings(space={"rate": FloatRange(0.1, 0.2)}, algorithm=Population(2, 10, 1), max_trials=0)
    outcome = conclude(Study(TuneLaunch(base, chosen), StoredTrials(), CodeWorkers(store), Points()))
    sys.modules.pop("train", None)
    assert outcome.error_reason == "NO_SUCCESSFUL_TRIAL"
    assert "SEGMENT_NOT_REACHED" in outcome.error_message


def code_job(store: fs.FileSystem, **fields: Any) -> LaunchSpec:
    """CODE as the base of a tuning job."""
    source, digest = archived({"train.py": CODE})
    objects.write(store, "s3://b/source", source)
    return replace(BASE, function="train.py:train", source=Source("s3://b/source", digest), **fields)


def test_a_trial_that_was_killed_after_its_last_checkpoint_is_repeated(tmp_path: Path) -> None:
    """Its code restores that checkpoint, trains no further step, and logs nothing."""
    store = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    base = code_job(store, params={"steps": 10})
    chosen = settings(space={"rate": FloatRange(0.01, 0.2)}, algorithm=RandomSearch(), max_trials=2)
    stored, found = StoredTrials({2: "before"}, store), []
    for _ in range(2):
        try:
            outcome = conclude(Study(TuneLaunch(base, chosen), stored, CodeWorkers(store), Points()))
            assert outcome.succeeded, outcome.error_message
        except Killed:
            assert objects.files_under(store, "s3://b/checkpoints/trials/0")
        finally:
            sys.modules.pop("train", None)
        found.append(stored.load())
    assert [trial.state for trial in found[0]] == [TrialState.RUNNING]
    assert [trial.state for trial in found[1]] == [TrialState.SUCCEEDED] * 2


def test_a_lost_segment_begins_from_the_checkpoint_before_it(tmp_path: Path) -> None:
    store = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    base = code_job(store, params={"steps": 100})
    chosen = settings(space={"rate": FloatRange(0.01, 0.2)}, algorithm=Population(2, 10, 2), max_trials=0)

    class LosingWorkers(CodeWorkers):
        """Its first piece runs to its end, and then its process is lost."""

        lost = False

        def wait(self) -> Reported | Ended | Lost:
            event = super().wait()
            if self.lost:
                return event
            self.lost = True
            return Lost(event.number, "killed")

    found = []
    for workers in (CodeWorkers(store), LosingWorkers(store)):
        stored = StoredTrials(store=store)
        outcome = conclude(Study(TuneLaunch(base, chosen), stored, workers, Points()))
        sys.modules.pop("train", None)
        assert outcome.succeeded, outcome.error_message
        found.append(stored.load())
    assert found[0] == found[1]


def test_an_error_of_every_trial_ends_the_job_at_once() -> None:
    outcome, trials = tune(settings(), lambda _: InvalidFunction("There is no module 'train'."))
    assert outcome.error_reason == "INVALID_FUNCTION"
    assert outcome.error_message == "There is no module 'train'."
    assert [trial.error_reason for trial in trials] == ["INVALID_FUNCTION"]


@pytest.mark.parametrize("seed", [0, 1])
def test_a_base_seed_is_replaced_by_a_parameter(seed: int) -> None:
    launch = TuneLaunch(BASE, settings())
    trial = Trial(0, f'{{"seed": {seed}}}')
    spec = launch.trial(trial, until_step=0, checkpoints="trials/0", initial="", export=True, gate="g")
    assert spec.seed == seed
