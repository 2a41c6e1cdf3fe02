"""Groups of ranks: processes on this machine that are connected by gloo."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pyarrow import fs

from flywheel_job import objects
from flywheel_job.launch import LaunchSpec
from flywheel_job.outcome import Outcome
from tests.support.ports import free_port

SPEC = "s3://b/spec.json"


def run_jobs(folder: Path, world: int, specs: Sequence[LaunchSpec], seconds: float = 100) -> list[Outcome]:
    """The outcomes of jobs that one group of ranks runs one after the other; buckets are under `folder`."""
    port = free_port()
    context = multiprocessing.get_context("spawn")
    ranks = [
        context.Process(target=_rank, args=(str(folder), port, rank, world, list(specs)), daemon=True)
        for rank in range(world)
    ]
    for one in ranks:
        one.start()
    deadline = time.monotonic() + seconds
    try:
        for one in ranks:
            one.join(max(0.1, deadline - time.monotonic()))
        assert [one.exitcode for one in ranks] == [0] * world
    finally:
        for one in ranks:
            one.kill()
    store = fs.SubTreeFileSystem(str(folder), fs.LocalFileSystem())
    return [Outcome.from_json(objects.read(store, spec.outcome_uri)) for spec in specs]


def _rank(folder: str, port: int, rank: int, world: int, specs: list[LaunchSpec]) -> None:
    import torch
    import torch.distributed as dist

    from flywheel_job.worker import call

    torch.set_num_threads(1)
    store = fs.SubTreeFileSystem(folder, fs.LocalFileSystem())
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", world_size=world, rank=rank)
    for spec in specs:
        outcome = call(spec.function, spec, store, rank=rank, world_size=world)
        if rank == 0:
            objects.write(store, spec.outcome_uri, outcome.to_json())
        dist.barrier()
    dist.destroy_process_group()


class Group:
    """One attempt of a job, as `torchrun` would start it: a process for each rank."""

    def __init__(self, folder: Path, spec: LaunchSpec, attempt: int, world: int | None = None) -> None:
        store = fs.SubTreeFileSystem(str(folder), fs.LocalFileSystem())
        objects.write(store, SPEC, spec.to_json())
        self.world = world or spec.workers
        port = free_port()
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "flywheel_job.worker", SPEC],
                env=os.environ
                | {
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "WORLD_SIZE": str(self.world),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                    "FLYWHEEL_ATTEMPT": str(attempt),
                    "FLYWHEEL_JOB_STORE": str(folder),
                    "OMP_NUM_THREADS": "1",
                },
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(self.world)
        ]

    def kill(self) -> None:
        """kill -9 of all ranks."""
        for one in self.processes:
            one.send_signal(signal.SIGKILL)
        for one in self.processes:
            one.communicate()

    def wait(self, seconds: float = 100) -> list[int]:
        """The exit statuses; the output of failed ranks is printed."""
        for one in self.processes:
            output, _ = one.communicate(timeout=seconds)
            if one.returncode:
                print(output)
        return [one.returncode for one in self.processes]
