"""Every parallel strategy trains like a single process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from flywheel_job.launch import DataSet, LaunchSpec
from flywheel_job.outcome import Outcome
from tests.support.ranks import run_jobs
from tests.support.training_job import launch_spec

FUNCTION = "flywheel_job.recipes.sequence.training:train"
STEPS, VOCABULARY, LENGTH = 12, 32, 16
PARAMS: dict[str, Any] = {
    "vocabulary": VOCABULARY,
    "steps": STEPS,
    "batch_size": 16,
    "width": 32,
    "layers": 4,
    "heads": 4,
    "learning_rate": 0.01,
    "clip_norm": 1.0,
    "warmup_steps": 3,
    "evaluate_steps": 6,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Token sequences that count upwards in steps of 1 to 3, in two files."""
    folder = tmp_path_factory.mktemp("sequences")
    random = np.random.default_rng(0)
    starts, strides = random.integers(0, VOCABULARY, 120), random.integers(1, 4, 120)
    rows = (starts[:, None] + strides[:, None] * np.arange(LENGTH + 1)) % VOCABULARY
    for name, part in (("train", rows[:80]), ("holdout", rows[80:])):
        (folder / "b" / name).mkdir(parents=True)
        for number, half in enumerate(np.array_split(part, 2)):
            frame = pl.DataFrame({"tokens": half.tolist()}, schema={"tokens": pl.List(pl.Int32)})
            frame.write_parquet(folder / "b" / name / f"{number}.parquet", row_group_size=16)
    return folder


def job(name: str, **params: Any) -> LaunchSpec:
    data = {one: DataSet(f"s3://b/{one}") for one in ("train", "holdout")}
    spec = launch_spec(FUNCTION, params=PARAMS | params, data=data, seed=5)
    return replace(
        spec, outcome_uri=f"s3://b/{name}/outcome.json", checkpoint_uri=f"s3://b/{name}/checkpoints"
    )


def curve(outcome: Outcome, key: str = "loss") -> list[float]:
    return [point.value for point in outcome.points if point.key == key]


@pytest.fixture(scope="module")
def single(folder: Path) -> Outcome:
    (outcome,) = run_jobs(folder, 1, [job("single")])
    losses = curve(outcome)
    assert len(losses) == STEPS
    # It learns: far below the loss of a guess.
    assert losses[0] == pytest.approx(np.log(VOCABULARY), abs=0.7)
    assert losses[-1] < 0.75 * losses[0]
    return outcome


@pytest.mark.timeout(300)
@pytest.mark.parametrize("world", [2, 4])
def test_the_loss_curves_of_all_strategies_are_those_of_one_process(
    folder: Path, single: Outcome, world: int
) -> None:
    settings: list[dict[str, Any]] = [
        {"strategy": "ddp"},
        {"strategy": "fsdp"},
        {"strategy": "tensor"},
        {"strategy": "pipeline"},
        {"strategy": "ddp", "accumulate": 2},
        {"strategy": "fsdp", "accumulate": 2},
    ]
    if world == 4:
        settings += [{"strategy": "ddp+pipeline"}, {"strategy": "pipeline", "accumulate": 8}]
    jobs = [job(f"{world}-{number}", **one) for number, one in enumerate(settings)]
    for one, outcome in zip(settings, run_jobs(folder, world, jobs, seconds=200), strict=True):
        np.testing.assert_allclose(curve(outcome), curve(single), atol=1e-5, rtol=1e-5, err_msg=str(one))
        np.testing.assert_allclose(
            curve(outcome, "val_loss"), curve(single, "val_loss"), atol=1e-5, rtol=1e-5, err_msg=str(one)
        )
