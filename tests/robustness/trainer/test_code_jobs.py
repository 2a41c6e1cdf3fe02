"""TRAIN jobs with the user's own code, submitted by the SDK and run on a real Ray cluster."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

import flywheel as fw
from flywheel.errors import JobFailedError
from flywheel_common.config import S3Settings
from flywheel_common.storage.s3 import object_store
from flywheel_local.ray import Ray
from flywheel_protos.trainer.v1 import trainer_pb2 as pb
from tests.support.peers.trainer import TRAINING_SET

pytestmark = [pytest.mark.slow, pytest.mark.timeout(590)]
CODE = """
import torch
from torch import nn


def train(ctx):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1))
    model = nn.parallel.DistributedDataParallel(net)
    optimizer = torch.optim.AdamW(model.parameters(), lr=ctx.params["learning_rate"])
    step = 0
    data = ctx.data("train", batch_size=256)
    while data.epoch < ctx.params["epochs"]:
        for batch in data:
            x = torch.stack([batch["v__x"].float().nan_to_num() / 20, batch["v__z"].float()], dim=1)
            loss = nn.functional.binary_cross_entropy_with_logits(model(x)[:, 0], batch["label"].float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            ctx.log({"loss": loss.item(), "world_size": ctx.world_size}, step)
        ctx.save(step, net, optimizer)
    ctx.artifact("weights", b"".join(p.detach().numpy().tobytes() for p in net.parameters()))


def broken(ctx):
    raise LookupError("no such column: " + str(ctx.params["column"]))


def look(ctx):
    import json
    import os
    from pathlib import Path

    import ray

    seen = [repr(dict(os.environ))]
    process = os.getpid()
    while process > 1:
        folder = Path("/proc") / str(process)
        seen.append((folder / "cmdline").read_bytes().decode(errors="replace"))
        seen.append((folder / "environ").read_bytes().decode(errors="replace"))
        process = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        if "pytest" in seen[-2]:  # the test session, which has the keys of its backends
            seen = seen[:-2]
            break
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    for root in (session, Path.cwd(), Path(__file__).parent):
        for file in sorted(root.rglob("*")):
            if file.is_file() and not file.is_symlink() and file.stat().st_size < 8_000_000:
                seen.append(f"file {file}: " + file.read_bytes().decode(errors="replace"))
    seen.append(json.dumps(ctx.spec.to_json().decode()))
    ctx.artifact("seen", chr(10).join(seen).encode())
    bucket = ctx.spec.output_uri.split("/")[2]
    refused = 0
    for path in ctx.params["foreign"]:
        for work in (
            lambda path=path: ctx.store.open_input_file(f"{bucket}/{path}"),
            lambda path=path: ctx.store.delete_file(f"{bucket}/{path}"),
            lambda path=path: ctx.store.open_output_stream(f"{bucket}/{path}").close(),
        ):
            try:
                work()
            except PermissionError:
                refused += 1
    ctx.log({"refused": refused}, 1)
"""


def job(folder: Path, function: str, **params: Any) -> fw.TrainJob:
    (folder / "train.py").write_text(CODE)
    return fw.TrainJob(
        function=f"train.py:{function}",
        source=folder,
        experiment="late",
        data={"train": TRAINING_SET},
        params=params,
        workers=2,
    )


async def test_code_of_a_user_trains_on_two_workers(
    client: Any, tmp_path: Path, s3_settings: S3Settings, bucket: str
) -> None:
    run = await client.run_job(job(tmp_path, "train", learning_rate=0.03, epochs=6))
    request = pb.ListMetricPointsRequest(run=run.name, key="loss")
    losses = await client.trainer.ListMetricPoints(request)
    # 4,000 rows, 2,000 per rank: 8 batches an epoch.
    assert list(losses.steps) == list(range(1, 49))
    assert sum(losses.values[-8:]) < 0.9 * sum(losses.values[:8])
    assert run.metrics["world_size"] == 2.0
    assert run.params["learning_rate"] == "0.03"
    (weights,) = [artifact for artifact in run.artifacts if artifact.name == "weights"]
    async with object_store(s3_settings) as store:
        content = await store.get(weights.uri.removeprefix(f"s3://{bucket}/"))
    assert len(content) == 4 * (2 * 8 + 8 + 8 + 1)


async def test_code_of_a_user_sees_no_key_of_the_service(
    client: Any, tmp_path: Path, s3_settings: S3Settings, bucket: str, database: str, ray: Ray
) -> None:
    # A join of the feature service brings that service's key to its cluster: this cluster has run none.
    await asyncio.to_thread(ray.restart)
    foreign = ["jobs/other/job-x/checkpoints/a", "sets/two/part-0.parquet", "sources/sha256/aa/bb/aabb"]
    async with object_store(s3_settings) as store:
        for key in foreign:
            await store.put(key, b"of another project")
        run = await client.run_job(job(tmp_path, "look", foreign=foreign))
        (seen,) = [artifact for artifact in run.artifacts if artifact.name == "seen"]
        text = (await store.get(seen.uri.removeprefix(f"s3://{bucket}/"))).decode()
        assert [b"of another project"] * 3 == [await store.get(key) for key in foreign]
    assert 9 == run.metrics["refused"]
    # It looked where keys could be: in its variables, its parents, the files of Ray, and its source.
    for place in (
        "FLYWHEEL_ATTEMPT_TOKEN",
        "flywheel_job.launcher",
        "raylet",
        "def look(ctx)",
        "checkpoint_uri",
    ):
        assert place in text
    assert s3_settings.s3_secret_key.get_secret_value() not in text
    assert database.rpartition("/")[2] not in text
    assert "postgresql://" not in text


async def test_an_exception_of_a_users_code_ends_the_job_with_its_traceback(
    client: Any, tmp_path: Path
) -> None:
    with pytest.raises(JobFailedError) as caught:
        await client.run_job(job(tmp_path, "broken", column="v__y"))
    text = str(caught.value)
    assert "TRAINING_FAILED" in text
    assert "LookupError: no such column: v__y" in text
    assert "in broken" in text
