"""Metrics of the machine that the ranks of a job log."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import flywheel as fw
from flywheel_job import objects
from flywheel_job.launch import LaunchSpec, Source
from flywheel_job.outcome import Outcome
from flywheel_job.system_use import system_use_reported
from flywheel_job.tuning.workers import run_trial
from flywheel_trainer.runs.run import Run, RunName
from tests.support.jobs_source import archived
from tests.support.ports import free_port
from tests.support.servers.restarted_trainer import RestartedTrainer
from tests.support.training_job import launch_spec


@pytest.fixture
def trainer() -> Iterator[RestartedTrainer]:
    started = RestartedTrainer()
    started.start()
    yield started
    started.close()


def spec_of(run: str, address: str) -> LaunchSpec:
    return replace(launch_spec("unused:unused"), run=run, trainer_address=address)


def test_each_rank_logs_its_own_use(trainer: RestartedTrainer, tmp_path: Path) -> None:
    with fw.run("late", address=trainer.address, spool=tmp_path, system_metrics=False) as run:
        assert run.flush()
        spec = spec_of(run.name, trainer.address)
        with system_use_reported(spec, 0), system_use_reported(spec, 1):
            pass
    found = trainer.runs.record(RunName.parse(run.name)).run.metrics
    names = ("cpu_percent", "memory_bytes", "machine_memory_percent")
    assert set(found) >= {f"system/{name}/rank-{rank}" for name in names for rank in (0, 1)}
    assert all(value >= 0 for value in found.values())
    assert found["system/memory_bytes/rank-1"] > 1e6


@pytest.mark.parametrize(("code", "succeeded"), [("ctx.log({'loss': 1.0}, 1)", True), ("1 / 0", False)])
def test_a_trial_logs_its_use_however_it_ends(
    trainer: RestartedTrainer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: str,
    succeeded: bool,
) -> None:
    monkeypatch.setenv(objects.STORE_FOLDER, str(tmp_path))
    archive, digest = archived({"trial.py": f"def train(ctx):\n    {code}\n"})
    objects.write(objects.open_store(), "s3://b/source", archive)
    with fw.run("late", address=trainer.address, spool=tmp_path / "spool", system_metrics=False) as run:
        assert run.flush()
        fields = {"run": run.name, "trainer_address": trainer.address}
        spec = launch_spec("trial.py:train", source=Source("s3://b/source", digest))
        outcome = Outcome.from_json(run_trial(replace(spec, **fields).to_json().decode()).encode())
    assert (succeeded, "ZeroDivisionError" in outcome.error_message) == (outcome.succeeded, not succeeded)
    found = trainer.runs.record(RunName.parse(run.name)).run.metrics
    assert found["system/memory_bytes/rank-0"] > 1e6
    assert all(not point.key.startswith("system/") for point in outcome.points)


def test_a_rank_runs_while_the_trainer_is_away() -> None:
    done = []
    with system_use_reported(spec_of("projects/p/runs/r", f"127.0.0.1:{free_port()}"), 0):
        done.append(True)
    assert done


def test_use_of_the_machine_is_no_result() -> None:
    metrics = {"auc": 0.75, "loss": float("nan"), "system/cpu_percent/rank-0": 90.0}
    run = Run(RunName("p", "r"), "projects/p/experiments/e", metrics=metrics)
    assert run.results == {"auc": 0.75}
