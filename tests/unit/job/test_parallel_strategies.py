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


OPTIONS: dict[str, dict[str, Any]] = {
    "single": {},
    "accumulated": {"accumulate": 4},
    "fused": {"fused": True},
    "compiled": {"compile": "aot_eager"},
    "bf16": {"precision": "bf16"},
}


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, Outcome]:
    """The outcomes of a single process with each option."""
    jobs = [job(name, **params) for name, params in OPTIONS.items()]
    return dict(zip(OPTIONS, run_jobs(folder, 1, jobs), strict=True))


@pytest.fixture(scope="module")
def single(alone: dict[str, Outcome]) -> Outcome:
    return alone["single"]


def assert_equal_curves(found: Outcome, expected: Outcome, name: object, start: int = 0) -> None:
    """Losses of training and holdout, from step `start` on."""
    np.testing.assert_allclose(
        curve(found), curve(expected)[start:], atol=1e-5, rtol=1e-5, err_msg=f"loss of {name}"
    )
    np.testing.assert_allclose(
        curve(found, "val_loss")[-1:],
        curve(expected, "val_loss")[-1:],
        atol=1e-5,
        rtol=1e-5,
        err_msg=f"holdout of {name}",
    )


@pytest.mark.timeout(200)
def test_a_single_process_learns(single: Outcome) -> None:
    losses = curve(single)
    assert len(losses) == STEPS
    assert losses[0] == pytest.approx(np.log(VOCABULARY), abs=0.7)
    assert losses[-1] < 0.75 * losses[0]
    assert len(curve(single, "val_loss")) == 2


@pytest.mark.timeout(200)
@pytest.mark.parametrize("name", ["accumulated", "fused", "compiled"])
def test_options_of_speed_and_memory_do_not_change_the_result(alone: dict[str, Outcome], name: str) -> None:
    assert_equal_curves(alone[name], alone["single"], name)


@pytest.mark.timeout(200)
def test_bf16_trains_with_the_precision_of_bf16(alone: dict[str, Outcome]) -> None:
    found, expected = curve(alone["bf16"]), curve(alone["single"])
    assert found != expected
    np.testing.assert_allclose(found, expected, rtol=0.05)


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
    ]
    if world == 2:
        settings += [{"strategy": "ddp", "accumulate": 2}, {"strategy": "fsdp", "accumulate": 2}]
    else:
        settings += [{"strategy": "ddp+pipeline"}, {"strategy": "pipeline", "accumulate": 8}]
    jobs = [job(f"{world}-{number}", **one) for number, one in enumerate(settings)]
    for one, outcome in zip(settings, run_jobs(folder, world, jobs, seconds=200), strict=True):
        assert_equal_curves(outcome, single, one)


@pytest.mark.timeout(300)
def test_two_ranks_resume_on_one_and_one_on_two(folder: Path, single: Outcome) -> None:
    kinds = ["fsdp", "tensor", "pipeline", "ddp"]
    run_jobs(folder, 2, [job(f"from-2-{one}", strategy=one, steps=7) for one in kinds])
    again = [replace(job(f"from-2-{one}", strategy="fsdp"), attempt=2) for one in kinds]
    for kind, outcome in zip(kinds, run_jobs(folder, 1, again), strict=True):
        assert_equal_curves(outcome, single, f"{kind} of 2 ranks on 1", start=7)
    run_jobs(folder, 1, [job("from-1", steps=7)])
    (outcome,) = run_jobs(folder, 2, [replace(job("from-1", strategy="fsdp"), attempt=2)])
    assert_equal_curves(outcome, single, "1 rank on 2", start=7)
