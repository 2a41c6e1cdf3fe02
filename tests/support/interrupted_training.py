"""A job of two ranks that is killed at random steps, and started again each time."""

from __future__ import annotations

import json
import random
import signal
from pathlib import Path

import numpy as np
import polars as pl
from pyarrow import fs

from flywheel_job import objects
from flywheel_job.launch import DataSet, LaunchSpec, Source
from flywheel_job.outcome import Outcome
from tests.support.jobs_source import archived
from tests.support.ranks import Group
from tests.support.training_job import launch_spec

STEPS = 60
CODE = f"""
import hashlib, time
import torch
from torch import nn

def train(ctx):
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 1))
    model = nn.parallel.DistributedDataParallel(net)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    data = ctx.data("train", batch_size=8, window_rows=64)
    torch.manual_seed(100 + ctx.rank)  # every rank drops other units
    restored = ctx.restore(net, optimizer)
    step = restored.step if restored else 0
    print("start", step, flush=True)
    while step < {STEPS}:
        for batch in data:
            x = torch.stack([batch[f"x{{n}}"] for n in range(4)], dim=1).float()
            loss = nn.functional.mse_loss(model(x)[:, 0], batch["y"].float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            ctx.log({{"loss": loss.item()}}, step)
            if step % 3 == 0 or step == {STEPS}:
                ctx.save(step, net, optimizer)
            print("step", step, flush=True)
            time.sleep(0.01)
            if step == {STEPS}:
                break
    ctx.artifact("parameters", b"".join(p.detach().numpy().tobytes() for p in net.parameters()))
"""


def job(folder: Path) -> LaunchSpec:
    """The job, its source archive and its data set of 400 rows, under `folder`."""
    store = fs.SubTreeFileSystem(str(folder), fs.LocalFileSystem())
    archive, digest = archived({"train.py": CODE})
    objects.write(store, "s3://b/source.tar.gz", archive)
    random_numbers = np.random.default_rng(1)
    x = random_numbers.normal(size=(400, 4))
    frame = pl.DataFrame({f"x{n}": x[:, n] for n in range(4)} | {"y": x.sum(axis=1)})
    (folder / "b" / "set").mkdir()
    frame.write_parquet(folder / "b" / "set" / "0.parquet", row_group_size=32)
    return launch_spec(
        "train.py:train",
        source=Source("s3://b/source.tar.gz", digest),
        data={"train": DataSet("s3://b/set/")},
        workers=2,
        seed=9,
    )


def run_with_kills(folder: Path, kills: int, seed: int) -> tuple[bytes, list[int]]:
    """The parameters at the end, and the steps from which the attempts started.

    At each kill, one random rank gets SIGKILL at a random step, and then the other.
    """
    folder.mkdir()
    spec = job(folder)
    chance = random.Random(seed)
    targets = sorted(chance.sample(range(2, STEPS), kills))
    starts = []
    for attempt in range(1, kills + 2):
        group = Group(folder, spec, attempt)
        wanted = targets[attempt - 1] if attempt <= kills else STEPS + 1
        for line in group.ranks[0].output:
            word, _, number = line.partition(" ")
            if word == "start":
                starts.append(int(number))
            if word == "step" and int(number) >= wanted:
                chance.choice(group.ranks).send_signal(signal.SIGKILL)
                break
        if attempt > kills:
            assert group.wait() == [0, 0]
        group.kill()
    store = fs.SubTreeFileSystem(str(folder), fs.LocalFileSystem())
    outcome = Outcome.from_json(objects.read(store, spec.outcome_uri))
    assert outcome.succeeded, json.dumps(outcome.error_message)
    return objects.read(store, outcome.artifacts[0].uri), starts
