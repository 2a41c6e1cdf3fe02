"""`flywheel tune` and the calls of trials, against a trainer in this process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import MessageToJson

import flywheel as fw
from flywheel.cli.tuning import trial_table
from flywheel.errors import SourceError
from flywheel.tune_calls import schedule
from flywheel.tune_job import settings_message
from flywheel_job.outcome import Outcome
from flywheel_job.tuning.trial import Segment, Trial, TrialState
from flywheel_protos.trainer.v1 import trainer_pb2 as pb
from flywheel_protos.trainer.v1 import tuning_pb2
from flywheel_trainer.jobs.attempt import engine_id
from flywheel_trainer.jobs.job import JobName, JobState
from flywheel_trainer.jobs.ports import TrainingSet
from tests.support.builders.trainer import AT, EXPERIMENT, TRAINING_SET
from tests.support.commands import flywheel
from tests.support.eventually import eventually
from tests.support.servers.trainer import MemoryTrainer, serve_in_memory

JOB_FILE = """
import flywheel as fw
from flywheel_protos.trainer.v1 import trainer_pb2

job = fw.TuneJob(
    trainer_pb2.TrainSpec(experiment="late", training_set="projects/p/trainingSets/t"),
    space={
        "learning_rate": fw.FloatRange(0.001, 0.1, log=True),
        "hidden_sizes": fw.Choices([[8], [64, 32]]),
        "epochs": fw.IntRange(1, 3),
        "seed": 4,
    },
    maximize="val_auc",
    at_most={"val_loss": 0.0},
    max_trials=3,
)
"""


@pytest.fixture
async def trainer() -> AsyncIterator[MemoryTrainer]:
    async with AsyncExitStack() as stack:
        trainer = await serve_in_memory(stack)
        trainer.feature.known[TRAINING_SET] = TrainingSet(TRAINING_SET, "s3://b/t", (), 100, "f" * 64, "")
        await trainer.ports.runs.create_experiment(EXPERIMENT, "", b"", AT)
        yield trainer


async def cli(trainer: MemoryTrainer, *command: str) -> Any:
    return await flywheel(*command, project="p", trainer=trainer.address)


async def end(trainer: MemoryTrainer, job: JobName, state: JobState = JobState.SUCCEEDED) -> None:
    """Three trials of the job have ended, the second one best, and the third one breaks the constraint."""
    supervision = trainer.ports.supervision(1_000_000)
    attempt = await supervision.begin_attempt(job, AT)
    assert attempt is not None
    for number, (value, violation) in enumerate(((0.6, -1.0), (0.7, 0.0), (0.9, 1.0))):
        params = json.dumps({"learning_rate": 0.01 * (number + 1)})
        trial = Trial(number, params, TrialState.SUCCEEDED, (value,), (violation,))
        await trainer.ports.trials.record(job, trial, Outcome(True), attempt.engine_id, AT)
    await supervision.end(job, state, Outcome(state is JobState.SUCCEEDED, "WHY", "it failed"), AT)


async def test_a_tuning_job_is_started_from_a_file(trainer: MemoryTrainer, tmp_path: Path) -> None:
    (tmp_path / "tune.py").write_text(JOB_FILE)
    started = await cli(trainer, "tune", str(tmp_path / "tune.py"))
    assert started.exit_code == 0, started.output
    [job] = (await trainer.stub.ListJobs(pb.ListJobsRequest(parent="projects/p"))).jobs
    assert job.name in started.output
    settings = job.tune.settings
    assert {one.name: one.WhichOneof("domain") for one in settings.space} == {
        "learning_rate": "float_range",
        "hidden_sizes": "choices",
        "epochs": "int_range",
        "seed": "fixed_json",
    }
    assert list(settings.space[1].choices.values_json) == ["[8]", "[64, 32]"]
    assert settings.constraints[0] == tuning_pb2.MetricConstraint(metric="val_loss", at_most=0.0)
    (tmp_path / "tune.json").write_text(MessageToJson(job.tune))
    again = await cli(trainer, "tune", str(tmp_path / "tune.json"))
    assert again.exit_code == 0, again.output
    jobs = (await trainer.stub.ListJobs(pb.ListJobsRequest(parent="projects/p"))).jobs
    assert [one.tune for one in jobs] == [job.tune, job.tune]


async def test_the_table_shows_the_trials_and_the_best_one(trainer: MemoryTrainer, tmp_path: Path) -> None:
    (tmp_path / "tune.py").write_text(JOB_FILE)
    await cli(trainer, "tune", str(tmp_path / "tune.py"))
    [job] = (await trainer.stub.ListJobs(pb.ListJobsRequest(parent="projects/p"))).jobs
    await end(trainer, JobName.parse(job.name))
    watched = await cli(trainer, "tune", job.name.rpartition("/")[2], "--watch")
    assert watched.exit_code == 0, watched.output
    for text in ("SUCCEEDED", "val_auc", "learning_rate=0.02", "0.9", "best: trial 1: 0.7"):
        assert text in watched.output
    refused = await cli(trainer, "tune", job.name, "--register", "late")
    assert (refused.exit_code, "NO_MODEL" in refused.output) == (1, True)


async def test_a_failed_job_is_an_error_of_the_command(trainer: MemoryTrainer, tmp_path: Path) -> None:
    (tmp_path / "tune.py").write_text(JOB_FILE)
    await cli(trainer, "tune", str(tmp_path / "tune.py"))
    [job] = (await trainer.stub.ListJobs(pb.ListJobsRequest(parent="projects/p"))).jobs
    await end(trainer, JobName.parse(job.name), JobState.FAILED)
    watched = await cli(trainer, "tune", job.name, "--watch")
    assert (watched.exit_code, "WHY: it failed" in watched.output) == (1, True)
    (tmp_path / "none.py").write_text("x = 1")
    nothing = await cli(trainer, "tune", str(tmp_path / "none.py"))
    assert (nothing.exit_code, "exactly one is needed" in nothing.output) == (1, True)


def test_values_that_json_does_not_have_are_refused() -> None:
    job = fw.TuneJob(pb.TrainSpec(), space={"x": fw.Choices([object()])}, minimize="loss")
    with pytest.raises(SourceError, match="'x'"):
        settings_message(job)
    with pytest.raises(SourceError, match="algorithm"):
        settings_message(fw.TuneJob(pb.TrainSpec(), space={}, algorithm="bayes"))  # type: ignore[arg-type]


def test_a_running_trial_shows_its_latest_value() -> None:
    job = pb.Job(name="j")
    job.tune.settings.objectives.add(metric="loss")
    trial = tuning_pb2.Trial(number=0, state="TRIAL_STATE_RUNNING", params_json='{"x": 0.5}', last_value=0.25)
    table = trial_table(job, [trial], [])
    assert [list(column.cells) for column in table.columns] == [["0"], ["x=0.5"], ["0.25"], ["RUNNING"]]
    assert "best: none yet" in str(table.caption)


def test_a_replay_follows_the_sources_of_the_segments() -> None:
    def trial(*sources: int | None) -> tuning_pb2.Trial:
        return tuning_pb2.Trial(
            segments=[
                tuning_pb2.TrialSegment(
                    generation=n,
                    source_trial=source,
                    until_step=10 * (n + 1),
                    params_json=f'{{"of": {source}}}',
                )
                for n, source in enumerate(sources)
            ]
        )

    found = schedule({0: trial(None, 1, 0), 1: trial(None, 0, 0)}, 1)
    assert [(one.until_step, one.params_json) for one in found] == [
        (10, '{"of": None}'),
        (20, '{"of": 1}'),
        (30, '{"of": 0}'),
    ]


async def test_a_member_of_a_population_of_networks_is_replayed(trainer: MemoryTrainer) -> None:
    base = pb.TrainSpec(
        experiment="projects/p/experiments/late", training_set=TRAINING_SET, tabular=pb.TabularRecipe(seed=7)
    )
    population = fw.TuneJob(
        base,
        space={"learning_rate": fw.FloatRange(0.001, 0.1), "hidden_sizes": [8]},
        minimize="val_loss",
        algorithm=fw.PopulationBased(population=2, interval_steps=3, generations=2),
    )
    params = [f'{{"hidden_sizes": [8], "learning_rate": {rate}}}' for rate in (0.05, 0.04)]
    segments = tuple(
        Segment(number, 0 if number else None, text, 3 * (number + 1), 0.5)
        for number, text in enumerate(params)
    )
    async with fw.Client("p", trainer=trainer.address) as client:
        job = await client.start_tuning(population)
        name = JobName.parse(job.name)
        supervision = trainer.ports.supervision(1_000_000)
        await supervision.begin_attempt(name, AT)
        trial = Trial(0, params[1], TrialState.SUCCEEDED, values=(0.5,), violations=(), segments=segments)
        await trainer.ports.trials.record(name, trial, Outcome(True), engine_id(name.job, 1), AT)
        [stored] = await client.trials(job.name)
        waiting = asyncio.create_task(client.replay_trial(stored))

        async def submitted() -> list[pb.Job]:
            jobs = (await client.trainer.ListJobs(pb.ListJobsRequest(parent="projects/p"))).jobs
            return [one for one in jobs if one.kind == "TRAIN"]

        [replay] = await eventually(submitted, within=30)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    recipe = replay.train.tabular
    assert (recipe.epochs, recipe.seed, list(recipe.hidden_sizes)) == (6, 7, [8])
    assert [(one.until_step, one.params_json) for one in recipe.schedule] == [(3, params[0]), (6, params[1])]
