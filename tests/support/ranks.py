"""Groups of ranks: processes on this machine that are connected by gloo."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from pyarrow import fs

from flywheel_job import objects
from flywheel_job.launch import LaunchSpec
from flywheel_job.outcome import Outcome
from tests.support.ports import free_port

SPEC = "s3://b/spec.json"

# A new interpreter needs seconds to import torch. Ranks are forked from a process that has done so, and that
# has started nothing: neither Polars nor gRPC works in such a fork once it has.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["flywheel_job.worker", "flywheel_job.recipes.sequence.training"])


def run_jobs(folder: Path, world: int, specs: Sequence[LaunchSpec], seconds: float = 100) -> list[Outcome]:
    """The outcomes of jobs that one group of ranks runs one after the other; buckets are under `folder`."""
    port = free_port()
    ranks = [
        _FORKS.Process(target=_rank, args=(str(folder), port, rank, world, list(specs)), daemon=True)
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


def _worker(environment: Mapping[str, str], output: Connection) -> None:
    """What `python -W ignore -m flywheel_job.worker SPEC` does."""
    from flywheel_job.worker import main

    for descriptor in (1, 2):
        os.dup2(output.fileno(), descriptor)
    warnings.simplefilter("ignore")
    os.environ.update(environment)
    sys.exit(main(SPEC))


class Rank:
    """The process of one rank, and what it prints."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        output, of_rank = _FORKS.Pipe(duplex=False)
        self._process = _FORKS.Process(target=_worker, args=(environment, of_rank), daemon=True)
        self._process.start()
        of_rank.close()
        with output:
            self.output = os.fdopen(os.dup(output.fileno()))

    def send_signal(self, number: int) -> None:
        assert self._process.pid is not None
        if self._process.exitcode is None:
            os.kill(self._process.pid, number)

    def wait(self, seconds: float | None = None) -> int | None:
        """The exit status; None if the process still runs after `seconds`."""
        self._process.join(seconds)
        return self._process.exitcode


class Group:
    """One attempt of a job, as `torchrun` would start it: a process for each rank."""

    def __init__(self, folder: Path, spec: LaunchSpec, attempt: int, world: int | None = None) -> None:
        store = fs.SubTreeFileSystem(str(folder), fs.LocalFileSystem())
        objects.write(store, SPEC, spec.to_json())
        self.world = world or spec.workers
        port = free_port()
        self.ranks = [
            Rank(
                {
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "WORLD_SIZE": str(self.world),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                    "FLYWHEEL_ATTEMPT": str(attempt),
                    "FLYWHEEL_JOB_STORE": str(folder),
                }
            )
            for rank in range(self.world)
        ]

    def kill(self) -> None:
        """kill -9 of all ranks."""
        for one in self.ranks:
            one.send_signal(signal.SIGKILL)
        for one in self.ranks:
            one.wait()
            one.output.close()

    def wait(self, seconds: float = 100) -> list[int | None]:
        """The exit statuses; the output of failed ranks is printed."""
        ends = [one.wait(seconds) for one in self.ranks]
        for one, status in zip(self.ranks, ends, strict=True):
            if status:
                print(one.output.read())
        return ends
