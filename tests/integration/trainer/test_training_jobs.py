"""TRAIN jobs on a real Ray cluster."""

from __future__ import annotations

import io
import json
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import numpy as np
import onnxruntime
import polars as pl
import psutil
import pytest
import torch

from flywheel_common.config import S3Settings
from flywheel_common.grpc.error_details import from_rpc_error
from flywheel_common.storage.s3 import object_store
from flywheel_job.recipes.dataset import encode
from flywheel_job.recipes.tabular.network import Scorer, TabularNet
from flywheel_job.signature import Input
from flywheel_protos.trainer.v1 import checkpoint_pb2
from flywheel_protos.trainer.v1 import trainer_pb2 as pb
from flywheel_protos.types.v1 import job_pb2
from tests.support.builders.trainer import learnable_rows
from tests.support.eventually import eventually
from tests.support.peers.trainer import TRAINING_SET

PROJECT = "projects/default"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(590)]

Start = Callable[[dict[str, str]], Awaitable[Any]]


def submission(
    request_id: str, *, epochs: int, workers: int = 2, training_set: str = TRAINING_SET
) -> pb.SubmitJobRequest:
    recipe = pb.TabularRecipe(epochs=epochs, hidden_sizes=[16, 8], seed=7, learning_rate=3e-3)
    train = pb.TrainSpec(experiment="late", training_set=training_set, tabular=recipe, workers=workers)
    return pb.SubmitJobRequest(parent=PROJECT, job=pb.Job(train=train), request_id=request_id)


async def test_two_workers_train_through_a_restart_of_the_trainer(
    trainer_settings: dict[str, str],
    with_peers: dict[str, str],
    with_ray: dict[str, str],
    peers: Any,
    s3_settings: S3Settings,
    bucket: str,
    start_trainer: Start,
) -> None:
    trainer = await start_trainer(trainer_settings | with_peers | with_ray)
    async with trainer.stub() as stub:
        await stub.CreateExperiment(pb.CreateExperimentRequest(parent=PROJECT, experiment_id="late"))
        job = (await stub.SubmitJob(submission("one", epochs=4))).job
        assert (await stub.SubmitJob(submission("one", epochs=4))).job.name == job.name

        async def running() -> bool:
            return (await stub.GetJob(pb.GetJobRequest(name=job.name))).job.state == job_pb2.JOB_STATE_RUNNING

        await eventually(running, within=120, every=0.3)
    trainer.kill()
    await trainer.start()
    log = ""
    async with trainer.stub() as stub:
        async for update in stub.WatchJob(pb.WatchJobRequest(name=job.name)):
            job, log = update.job, log + update.log
        assert job.state == job_pb2.JOB_STATE_SUCCEEDED, (job.error_message, log[-3000:])
        run = (await stub.GetRun(pb.GetRunRequest(name=job.run))).run
        losses = await stub.ListMetricPoints(pb.ListMetricPointsRequest(run=job.run, key="train_loss"))
        reason = await submit_unknown_training_set(stub)
        listed = await stub.ListCheckpoints(checkpoint_pb2.ListCheckpointsRequest(parent=job.name))

    assert "epoch 4/4" in log
    assert list(losses.steps) == [1, 2, 3, 4]
    assert losses.values[-1] < losses.values[0]
    assert run.params["workers"] == "2"
    assert run.metrics["auc"] > 0.7
    for rank in (0, 1):
        assert run.metrics[f"system/memory_bytes/rank-{rank}"] > 1e6
    assert reason == "UNKNOWN_TRAINING_SET"
    last = listed.checkpoints[-1]
    assert (last.step, last.world_size) == (4, 2)
    assert last.metrics["train_loss"] == losses.values[-1]

    async with object_store(s3_settings) as store:
        files = {a.name: await store.get(a.uri.removeprefix(f"s3://{bucket}/")) for a in run.artifacts}
        table = await store.get("sets/one/part-0.parquet")
    weights = torch.load(io.BytesIO(files["weights.pt"]), weights_only=True)
    inputs = tuple(Input(i["name"], i["data_type"], tuple(i["vocabulary"])) for i in weights["inputs"])
    network = TabularNet(
        [len(i.vocabulary) if i.categorical else None for i in inputs], weights["hidden_sizes"]
    )
    network.load_state_dict(weights["state"])
    rows = encode(pl.read_parquet(table), inputs)
    session = onnxruntime.InferenceSession(files["model.onnx"])
    with torch.no_grad():
        expected = Scorer(network).eval()(torch.from_numpy(rows)).numpy()
    np.testing.assert_allclose(session.run(["SCORE"], {"INPUT": rows})[0], expected, atol=1e-6)
    report = json.loads(files["report.json"])
    assert [i["name"] for i in report["inputs"]] == ["v__x", "v__z", "v__c", "v__b"]
    assert report["metrics"]["rows"] + report["split"]["calibration_end"] == len(rows)


async def submit_unknown_training_set(stub: Any) -> str:
    """The reason of the error."""
    with pytest.raises(grpc.RpcError) as error:
        await stub.SubmitJob(submission("two", epochs=1, training_set="projects/default/trainingSets/none"))
    return from_rpc_error(error.value).reason


async def test_cancelling_a_job_ends_all_its_processes(
    trainer_settings: dict[str, str],
    with_peers: dict[str, str],
    with_ray: dict[str, str],
    peers: Any,
    start_trainer: Start,
) -> None:
    trainer = await start_trainer(trainer_settings | with_peers | with_ray)
    async with trainer.stub() as stub:
        await stub.CreateExperiment(pb.CreateExperimentRequest(parent=PROJECT, experiment_id="late"))
        job = (await stub.SubmitJob(submission("long", epochs=100_000, workers=1))).job

        async def learning() -> bool:
            found = (await stub.GetJob(pb.GetJobRequest(name=job.name))).job
            return found.progress.done >= 2 or found.HasField("ended_at")

        await eventually(learning, within=240, every=0.3)
        # The driver and at least one worker, whose process title changes while it works.
        await eventually(lambda: len(processes_of(job.name)) >= 2, within=30)
        tree = processes_of(job.name)
        await stub.CancelJob(pb.CancelJobRequest(name=job.name))

        async def cancelled() -> bool:
            found = (await stub.GetJob(pb.GetJobRequest(name=job.name))).job
            return found.state == job_pb2.JOB_STATE_CANCELLED

        await eventually(cancelled, within=60, every=0.3)
        run = (await stub.GetRun(pb.GetRunRequest(name=job.run))).run
    assert run.state == pb.RUN_STATE_CANCELLED
    await eventually(lambda: not alive(tree), within=30)


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """The processes that still run, without zombies."""
    found = []
    for process in processes:
        try:
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def processes_of(job: str) -> list[psutil.Process]:
    """The driver of the job, found by its command line, and the training workers of this session's
    cluster."""
    number = job.rsplit("/", 1)[1]
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            command = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if number in command or "RayTrainWorker" in command:
            found.append(process)
    return found


async def test_a_job_that_cannot_start_fails_with_the_cause(
    trainer_settings: dict[str, str],
    with_peers: dict[str, str],
    with_ray: dict[str, str],
    peers: Any,
    start_trainer: Start,
) -> None:
    broken = {"FLYWHEEL_TRAINER_JOB_PYTHON": "/no/such/python"}
    trainer = await start_trainer(trainer_settings | with_peers | with_ray | broken)
    async with trainer.stub() as stub:
        await stub.CreateExperiment(pb.CreateExperimentRequest(parent=PROJECT, experiment_id="late"))
        job = (await stub.SubmitJob(submission("broken", epochs=1))).job

        async def ended() -> pb.Job | None:
            found = (await stub.GetJob(pb.GetJobRequest(name=job.name))).job
            return found if found.HasField("ended_at") else None

        job = await eventually(ended, within=120, every=0.3)
    assert (job.state, job.error_reason) == (job_pb2.JOB_STATE_FAILED, "JOB_CRASHED")
    assert "/no/such/python" in job.error_message


async def test_an_unusable_training_set_fails_the_job_with_its_reason(
    trainer_settings: dict[str, str],
    with_peers: dict[str, str],
    with_ray: dict[str, str],
    peers: Any,
    s3_settings: S3Settings,
    bucket: str,
    start_trainer: Start,
) -> None:
    content = io.BytesIO()
    learnable_rows(100).with_columns(label=pl.lit(1)).write_parquet(content)
    async with object_store(s3_settings) as objects:
        await objects.put("sets/two/part-0.parquet", content.getvalue())
    peers.feature.uri = f"s3://{bucket}/sets/two/"
    trainer = await start_trainer(trainer_settings | with_peers | with_ray)
    async with trainer.stub() as stub:
        await stub.CreateExperiment(pb.CreateExperimentRequest(parent=PROJECT, experiment_id="late"))
        job = (await stub.SubmitJob(submission("one", epochs=1, workers=1))).job

        async def ended() -> pb.Job | None:
            found = (await stub.GetJob(pb.GetJobRequest(name=job.name))).job
            return found if found.HasField("ended_at") else None

        job = await eventually(ended, within=240, every=0.3)
    assert (job.state, job.error_reason) == (job_pb2.JOB_STATE_FAILED, "UNUSABLE_TRAINING_SET")
    assert job.error_message == "Every label is 1: labels of both classes are needed."
