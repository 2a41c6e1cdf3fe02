"""All ranks of a job end at the same step after one of them was asked to."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from pyarrow import fs

from flywheel_job import objects
from flywheel_job.agreed_stop import MOST_CALLS, next_interval
from flywheel_job.launch import Source
from tests.support.eventually import eventually
from tests.support.jobs_source import archived
from tests.support.ranks import Group
from tests.support.training_job import launch_spec

CODE = """
import time
import torch.distributed as dist
from flywheel_job import objects

exchanges = []
all_reduce = dist.all_reduce

def counted(*arguments, **options):
    exchanges.append(1)
    return all_reduce(*arguments, **options)

def train(ctx):
    dist.all_reduce = counted
    step = 0
    while not ctx.should_stop():
        step += 1
        if step == 60:
            objects.write(ctx.store, f"s3://b/running-{ctx.rank}", b"")
        time.sleep(0.01)
    objects.write(ctx.store, f"s3://b/ended-{ctx.rank}", f"{step} {len(exchanges)}".encode())
"""


@pytest.mark.timeout(200)
async def test_all_ranks_end_at_the_step_at_which_one_was_asked_to(tmp_path: Path) -> None:
    store = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    archive, digest = archived({"train.py": CODE})
    objects.write(store, "s3://b/source.tar.gz", archive)
    source = Source("s3://b/source.tar.gz", digest)
    spec = launch_spec("train.py:train", source=source, workers=2)
    group = Group(tmp_path, spec, attempt=1)
    try:
        running = [tmp_path / "b" / f"running-{rank}" for rank in range(2)]
        await eventually(lambda: all(one.exists() for one in running), within=120)
        group.ranks[1].send_signal(signal.SIGTERM)
        assert group.wait() == [0, 0]
    finally:
        group.kill()
    ends = [objects.read(store, f"s3://b/ended-{rank}").decode().split() for rank in range(2)]
    steps, exchanges = map(int, ends[0])
    assert ends[1] == ends[0]
    assert exchanges < steps / 4


@pytest.mark.parametrize(
    ("before", "seconds", "expected"),
    [
        (1, 10.0, 1),  # calls that take longer than the time between two exchanges
        (8, 10.0, 1),
        (8, 0.01, 16),  # not 25: it grows by two at most
        (16, 0.01, 25),
        (MOST_CALLS, 1e-6, MOST_CALLS),
        (MOST_CALLS, 0.0, MOST_CALLS),
    ],
)
def test_calls_between_exchanges_follow_their_duration(before: int, seconds: float, expected: int) -> None:
    assert next_interval(before, seconds) == expected
