"""The program of docs/guides/training.md, as it is written there."""

from __future__ import annotations

import ast
import json
import re
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from pyarrow import fs

import flywheel as fw
from flywheel.train_job import PackedJob, pack_job, train_spec
from flywheel.tune_job import settings_message
from flywheel_job import objects
from flywheel_job.launch import Column, DataSet, LaunchSpec, Source
from flywheel_job.recipes.sequence.params import checked_params
from flywheel_job.tuning.driver import Study, conclude
from flywheel_job.tuning.launch import TuneLaunch
from flywheel_job.tuning.messages import settings_from_proto
from flywheel_job.tuning.settings import Population
from flywheel_job.tuning.trial import best_trials
from flywheel_trainer.jobs.code import CodeRecipe
from flywheel_trainer.jobs.train_spec import TrainSpec
from flywheel_trainer.jobs.tune_spec import TuneSpec, check_tune_spec
from tests.support.training_job import launch_spec, run_here
from tests.support.tuning import CodeWorkers, Points, StoredTrials

GUIDE = Path(__file__).resolve().parents[3] / "docs" / "guides" / "training.md"


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)


def test_the_loop_of_the_guide_trains(tmp_path: Path) -> None:
    loop, submit, *_ = blocks()
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "train.py").write_text(loop)
    call = next(node for node in ast.walk(ast.parse(submit)) if isinstance(node, ast.Call))
    fields = {
        one.arg: ast.literal_eval(one.value) for one in call.keywords if one.arg not in {"data", "source"}
    }
    job = fw.TrainJob(source=folder, data={"train": "t"}, **fields)
    packed = pack_job(job)
    assert packed.archive is not None

    store = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    spec = submitted(packed, store, tmp_path)
    try:
        outcome = run_here(spec, store)
    finally:
        sys.modules.pop("train", None)
    assert outcome.succeeded, outcome.error_message
    losses = [point.value for point in outcome.points]
    assert len(losses) == 3 * 32
    assert np.mean(losses[-10:]) < 0.2 < np.mean(losses[:10])


def test_packages_and_limits_of_the_guide_are_submitted(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(blocks()[0])
    (tmp_path / "requirements.lock").write_text("six==1.17.0\n")
    packages, limits = (
        run_block(block.replace('source="."', f"source={str(tmp_path)!r}")) for block in blocks()[2:4]
    )
    spec = train_spec(pack_job(packages), lambda *parts: "/".join(parts))
    assert "requirements.lock" == spec.code.requirements
    limited = train_spec(pack_job(limits), lambda *parts: "/".join(parts)).limits
    assert (21_600, 600, 5) == (limited.timeout.seconds, limited.stall_timeout.seconds, limited.max_attempts)


def run_block(block: str) -> fw.TrainJob:
    """The job that a block makes."""
    names: dict[str, Any] = {"fw": fw, "training_set": "t"}
    exec(block, names)
    job = names["job"]
    assert isinstance(job, fw.TrainJob)
    return job


def submitted(packed: PackedJob, store: fs.FileSystem, folder: Path) -> LaunchSpec:
    """The launch of a packed job, with its archive and its training set in the store."""
    assert packed.archive is not None
    objects.write(store, "s3://b/source", packed.archive.content)
    x = np.random.default_rng(3).normal(size=(2000, 2))
    (folder / "b" / "set").mkdir()
    pl.DataFrame(
        {"v__x": x[:, 0], "v__y": x[:, 1], "label": (x.sum(axis=1) > 0).astype(float)}
    ).write_parquet(folder / "b" / "set" / "0.parquet")
    columns = (Column("v__x", "FLOAT64"), Column("v__y", "FLOAT64"))
    return launch_spec(
        packed.job.function,
        source=Source("s3://b/source", packed.archive.sha256),
        params=json.loads(packed.params_json),
        data={"train": DataSet("s3://b/set/", columns=columns)},
        failure_uri="s3://b/failure.json",
    )


def tuned(block: str, code: str, tmp_path: Path, **changes: object) -> tuple[TuneLaunch, StoredTrials]:
    """Run the tuning job of a block of the guide in this process."""
    names: dict[str, Any] = {}
    exec(block, names)
    job = names["job"]
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "train.py").write_text(code)
    store = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    base = submitted(pack_job(replace(job.job, source=folder)), store, tmp_path)
    settings = replace(settings_from_proto(settings_message(job)), **changes)  # type: ignore[arg-type]
    check_tune_spec(TuneSpec(TrainSpec("late", "", code=CodeRecipe("a:b")), settings))
    launch, trials = TuneLaunch(base, settings), StoredTrials(store=store)
    try:
        outcome = conclude(Study(launch, trials, CodeWorkers(store), Points()))
    finally:
        sys.modules.pop("train", None)
    assert outcome.succeeded, outcome.error_message
    return launch, trials


def test_the_tuning_job_of_the_guide_finds_a_learning_rate(tmp_path: Path) -> None:
    loop, tune = blocks()[0], blocks()[4]
    # Early stopping asks a Ray actor: tests/robustness/trainer/test_tuning.py.
    launch, trials = tuned(tune, loop, tmp_path, early_stopping=None, max_trials=4)
    [best] = best_trials(trials.load(), launch.settings.objectives)
    assert len(trials.load()) == 4
    assert best.values[0] == min(trial.values[0] for trial in trials.load())


def test_the_population_of_the_guide_continues_from_checkpoints(tmp_path: Path) -> None:
    loop, rate, population = blocks()[0], blocks()[5], blocks()[6]
    restored = "    restored = ctx.restore(net, optimizer)\n"
    assert loop.count(restored) == 1
    code = loop.replace(restored, restored + textwrap.indent(rate, "    "))
    _, trials = tuned(population, code, tmp_path, algorithm=Population(4, 32, 3))
    found = trials.load()
    assert [[one.until_step for one in trial.segments] for trial in found] == [[32, 64, 96]] * 4
    assert any(one.source_trial != trial.number for trial in found for one in trial.segments[1:])


def test_the_other_job_of_the_guide_can_be_packed() -> None:
    recipe = blocks()[-1].replace("training_set", "'t'")
    names: dict[str, object] = {"fw": fw}
    exec(recipe, names)
    job = names["job"]
    assert isinstance(job, fw.TrainJob)
    pack_job(job)
    assert checked_params(job.params, job.workers).strategy == "fsdp"
