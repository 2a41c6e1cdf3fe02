"""The transformer recipe as a TRAIN job on real Ray: two pipelines of two workers, one of them killed."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import polars as pl
import psutil
import pytest

import flywheel as fw
from flywheel_common.config import S3Settings
from flywheel_common.storage.s3 import object_store
from flywheel_job.launch import DataSet
from flywheel_job.recipes.sequence.params import TRAIN
from flywheel_protos.feature.v1 import training_set_pb2
from flywheel_protos.trainer.v1 import trainer_pb2 as pb
from flywheel_protos.types.v1 import job_pb2, value_pb2
from tests.support.eventually import eventually
from tests.support.peers.trainer import FEATURE_SET, Peers
from tests.support.ranks import run_jobs
from tests.support.training_job import launch_spec

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
Start = Callable[[dict[str, str]], Awaitable[Any]]
VOCABULARY, TOKENS, STEPS = 32, 17, 30
RECIPE = fw.TransformerRecipe(
    vocabulary=VOCABULARY,
    column="v__tokens",
    strategy="ddp+pipeline",
    stages=2,
    steps=STEPS,
    batch_size=32,
    width=128,
    layers=6,
    learning_rate=1e-3,
    clip_norm=1.0,
    save_steps=5,
    evaluate_steps=15,
)


def sequences(rows: int, seed: int) -> pl.DataFrame:
    """Rows that count upwards in steps of 1 to 3."""
    random = np.random.default_rng(seed)
    starts, strides = random.integers(0, VOCABULARY, rows), random.integers(1, 4, rows)
    tokens = (starts[:, None] + strides[:, None] * np.arange(TOKENS)) % VOCABULARY
    return pl.DataFrame({"v__tokens": tokens.tolist()}, schema={"v__tokens": pl.List(pl.Int64)})


FRAMES = {"train": sequences(200, 0), "holdout": sequences(64, 1)}


@pytest.fixture
async def client(
    trainer_settings: dict[str, str],
    with_peers: dict[str, str],
    with_ray: dict[str, str],
    start_trainer: Start,
    peers: Peers,
    s3_settings: S3Settings,
    bucket: str,
) -> AsyncIterator[fw.Client]:
    """The SDK's client of a trainer with an experiment, and two training sets of sequences."""
    async with object_store(s3_settings) as store:
        for name, frame in FRAMES.items():
            content = io.BytesIO()
            frame.write_parquet(content)
            await store.put(f"sets/{name}/part-0.parquet", content.getvalue())
            column = value_pb2.Field(name="v__tokens", data_type=value_pb2.DATA_TYPE_INT64_LIST)
            found = training_set_pb2.TrainingSet(
                name=f"projects/default/trainingSets/{name}",
                feature_set=FEATURE_SET,
                uri=f"s3://{bucket}/sets/{name}/",
                row_count=frame.height,
                schema=[column],
                content_hash="f" * 64,
                mode=training_set_pb2.JOIN_MODE_POINT_IN_TIME,
                profile=[training_set_pb2.ColumnProfile(name="v__tokens")],
            )
            peers.feature.further_sets[found.name] = found
    settings = trainer_settings | with_peers | with_ray
    await start_trainer(settings)
    async with fw.Client(trainer=settings["FLYWHEEL_TRAINER_LISTEN"]) as client:
        request = pb.CreateExperimentRequest(parent="projects/default", experiment_id="sequences")
        await client.trainer.CreateExperiment(request)
        yield client


async def test_two_killed_pipelines_of_two_workers_train_like_one_process(
    client: fw.Client, tmp_path: Path, s3_settings: S3Settings, bucket: str
) -> None:
    job = RECIPE.job(
        experiment="sequences",
        data={name: f"projects/default/trainingSets/{name}" for name in FRAMES},
        workers=4,
        cpus_per_worker=0.25,
        seed=5,
    )
    submitted = await client.submit_job(job)

    async def has_a_checkpoint() -> bool:
        return len(await points(client, submitted.run, "loss")) > 5

    await eventually(has_a_checkpoint, within=300)
    workers()[0].kill()

    async def ended() -> bool:
        found = (await client.trainer.GetJob(pb.GetJobRequest(name=submitted.name))).job
        return bool(found.state in (job_pb2.JOB_STATE_SUCCEEDED, job_pb2.JOB_STATE_FAILED))

    await eventually(ended, within=400)
    found = (await client.trainer.GetJob(pb.GetJobRequest(name=submitted.name))).job
    assert found.state == job_pb2.JOB_STATE_SUCCEEDED, found.error_message
    assert len(found.attempts) == 2

    expected = single_process(tmp_path)
    losses = await points(client, submitted.run, "loss")
    assert sorted(losses) == list(range(1, STEPS + 1))
    np.testing.assert_allclose([losses[step] for step in sorted(losses)], expected["loss"], atol=1e-5)
    held = await points(client, submitted.run, "val_loss")
    np.testing.assert_allclose([held[15], held[30]], expected["val_loss"], atol=1e-5)

    run = (await client.trainer.GetRun(pb.GetRunRequest(name=submitted.run))).run
    artifacts = {one.name: one.uri.removeprefix(f"s3://{bucket}/") for one in run.artifacts}
    assert set(artifacts) == {"model.onnx", "report.json"}
    async with object_store(s3_settings) as store:
        model = await store.get(artifacts["model.onnx"])
    rows = np.array(sequences(50, 2)["v__tokens"].to_list())
    (scores,) = onnxruntime.InferenceSession(model).run(["SCORE"], {"INPUT": rows.astype(np.float32)})
    assert scores.shape == (50, VOCABULARY)
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-5)


async def points(client: fw.Client, run: str, key: str) -> dict[int, float]:
    answer = await client.trainer.ListMetricPoints(pb.ListMetricPointsRequest(run=run, key=key))
    return dict(zip(answer.steps, answer.values, strict=True))


def single_process(folder: Path) -> dict[str, list[float]]:
    """The losses of one process without Ray."""
    for name, frame in FRAMES.items():
        (folder / "b" / name).mkdir(parents=True)
        frame.write_parquet(folder / "b" / name / "part-0.parquet")
    params = asdict(replace(RECIPE, strategy="ddp", stages=0))
    data = {name: DataSet(f"s3://b/{name}") for name in FRAMES}
    [outcome] = run_jobs(folder, 1, [launch_spec(TRAIN, params=params, data=data, seed=5)])
    return {key: [one.value for one in outcome.points if one.key == key] for key in ("loss", "val_loss")}


def workers() -> list[psutil.Process]:
    """The processes of Ray Train's workers below this one."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
    return found
