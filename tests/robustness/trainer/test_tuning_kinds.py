"""TUNE jobs on real Ray: population-based training that is killed and replayed, and trials of two workers."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import flywheel as fw
from flywheel_protos.trainer.v1 import trainer_pb2 as pb
from flywheel_protos.trainer.v1 import tuning_pb2
from flywheel_protos.types.v1 import job_pb2
from tests.support.eventually import eventually
from tests.support.peers.trainer import MODEL, TRAINING_SET, Peers
from tests.support.tune_jobs import driver_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
Start = Callable[[dict[str, str]], Awaitable[Any]]
CODE = """
import torch


def train(ctx):
    net = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    restored = ctx.restore(net, optimizer)
    for group in optimizer.param_groups:
        group["lr"] = ctx.params["rate"]
    step = restored.step if restored else 0
    while step < 1000:
        step += 1
        rows = torch.randn(16, 2)
        loss = ((net(rows) - rows @ torch.tensor([[3.0], [-2.0]])) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 0:
            ctx.log({"loss": loss.item()}, step)
            ctx.save(step, net, optimizer)
"""


@pytest.fixture
async def client(
    trainer_settings: dict[str, str],
    with_peers: dict[str, str],
    with_ray: dict[str, str],
    start_trainer: Start,
) -> AsyncIterator[fw.Client]:
    """The SDK's client of a trainer with an experiment."""
    settings = trainer_settings | with_peers | with_ray
    await start_trainer(settings)
    async with fw.Client(trainer=settings["FLYWHEEL_TRAINER_LISTEN"]) as client:
        request = pb.CreateExperimentRequest(parent="projects/default", experiment_id="late")
        await client.trainer.CreateExperiment(request)
        yield client


async def test_a_replay_of_the_winner_of_a_killed_population_has_its_score(
    client: fw.Client, tmp_path: Path
) -> None:
    (tmp_path / "train.py").write_text(CODE)
    base = fw.TrainJob(function="train.py:train", source=tmp_path, experiment="late", cpus_per_worker=0.5)
    job = await client.start_tuning(
        fw.TuneJob(
            base,
            space={"rate": fw.FloatRange(1e-4, 0.1, log=True)},
            minimize="loss",
            algorithm=fw.PopulationBased(population=4, interval_steps=10, generations=4),
            parallel_trials=2,
            seed=5,
        )
    )

    async def second_generation() -> bool:
        return any(len(one.segments) > 1 for one in await client.trials(job.name))

    await eventually(second_generation, within=300)
    process = driver_of(job.name)
    assert process is not None
    os.kill(process, signal.SIGKILL)
    result = await client.wait_tuning(job.name)
    assert len(result.job.attempts) == 2
    trials = await client.trials(job.name)
    assert [[one.until_step for one in trial.segments] for trial in trials] == [[10, 20, 30, 40]] * 4
    assert any(
        one.source_trial != trial.number for trial in trials for one in trial.segments if one.generation
    )
    [best] = result.best
    run = await client.replay_trial(best)
    assert run.metrics["loss"] == best.values[0] == min(one.values[0] for one in trials)


async def test_a_population_of_networks_is_replayed_with_its_score(client: fw.Client) -> None:
    base = pb.TrainSpec(
        experiment=client.path("experiments", "late"),
        training_set=TRAINING_SET,
        tabular=pb.TabularRecipe(hidden_sizes=[8], seed=3),
        cpus_per_worker=0.5,
    )
    result = await client.tune(
        fw.TuneJob(
            base,
            space={"learning_rate": fw.FloatRange(1e-4, 0.1, log=True), "dropout": fw.FloatRange(0, 0.5)},
            minimize="val_loss",
            algorithm=fw.PopulationBased(population=3, interval_steps=2, generations=2),
            parallel_trials=2,
            seed=5,
        )
    )
    trials = await client.trials(result.job.name)
    assert [[one.until_step for one in trial.segments] for trial in trials] == [[2, 4]] * 3
    steps = {one.step for one in await client.checkpoints(result.job.name)}
    assert steps == {4}, "the checkpoints of the first generation are deleted"
    [best] = result.best
    run = await client.replay_trial(best)
    assert run.metrics["val_loss"] == best.values[0] == min(one.values[0] for one in trials)
    assert run.params["epochs"] == "4"


async def test_trials_of_two_workers_are_exported_and_registered(client: fw.Client, peers: Peers) -> None:
    spec = pb.TrainSpec(
        experiment=client.path("experiments", "late"),
        training_set=TRAINING_SET,
        tabular=pb.TabularRecipe(epochs=2),
        workers=2,
        cpus_per_worker=0.5,
    )
    result = await client.tune(
        fw.TuneJob(
            spec,
            space={"hidden_sizes": fw.Choices([[8], [16, 8]]), "learning_rate": 0.01},
            maximize="val_auc",
            algorithm="grid",
        )
    )
    trials = await client.trials(result.job.name)
    assert [one.state for one in trials] == [tuning_pb2.TRIAL_STATE_SUCCEEDED] * 2
    version = await client.register_trial(result.best[0], MODEL)
    assert version.startswith(f"{MODEL}/versions/")
    run = (await client.trainer.GetRun(pb.GetRunRequest(name=result.best[0].run))).run
    assert {one.name for one in run.artifacts} == {"model.onnx", "report.json", "weights.pt"}
    assert run.metrics["val_auc"] == result.best[0].values[0] > 0.6
    assert all(run.metrics[f"system/memory_bytes/rank-{rank}"] > 1e6 for rank in (0, 1))


async def test_cancel_ends_the_trials_and_their_processes(client: fw.Client, tmp_path: Path) -> None:
    code = "import time\n\n\ndef train(ctx):\n    ctx.log({'loss': 1.0}, 1)\n    time.sleep(600)\n"
    (tmp_path / "train.py").write_text(code)
    base = fw.TrainJob(function="train.py:train", source=tmp_path, experiment="late", cpus_per_worker=0.5)
    space = {"rate": fw.FloatRange(0, 1)}
    job = await client.start_tuning(
        fw.TuneJob(base, space=space, minimize="loss", max_trials=9, parallel_trials=2)
    )

    async def both_run() -> bool:
        request = pb.ListRunsRequest(parent=client.parent, filter=f"parent_run={job.run.rpartition('/')[2]}")
        runs = (await client.trainer.ListRuns(request)).runs
        return [dict(one.metrics) for one in runs] == [{"loss": 1.0}] * 2

    await eventually(both_run, within=120)
    assert processes("ray::run_trial")
    await client.trainer.CancelJob(pb.CancelJobRequest(name=job.name))

    async def cancelled() -> bool:
        found = (await client.trainer.GetJob(pb.GetJobRequest(name=job.name))).job
        return bool(found.state == job_pb2.JOB_STATE_CANCELLED)

    await eventually(cancelled, within=60)
    await eventually(lambda: not processes("ray::run_trial"), within=10)
    assert driver_of(job.name) is None
    trials = await client.trials(job.name)
    assert [one.state for one in trials] == [tuning_pb2.TRIAL_STATE_CANCELLED] * 2
    run = (await client.trainer.GetRun(pb.GetRunRequest(name=trials[0].run))).run
    assert run.state == pb.RUN_STATE_CANCELLED


def processes(title: str) -> list[str]:
    """The processes whose title begins with this."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            words = (folder / "cmdline").read_bytes() if folder.name.isdecimal() else b""
        except OSError:
            continue
        if words.startswith(title.encode()):
            found.append(folder.name)
    return found
