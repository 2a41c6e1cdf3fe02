"""Clients that log to a run each, for bench.trainer.against_mlflow: prints metrics per second.

    python -m bench.trainer.tracking_load ADDRESS CLIENTS POINTS

The time is that from one start until the trainer has acknowledged the last point of all runs.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import flywheel as fw

PROCESSES = 4
START_SECONDS = 120


def main() -> None:
    address, clients, points = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    processes = min(clients, PROCESSES)
    # A forked process would share the threads and channels of gRPC.
    context = multiprocessing.get_context("spawn")
    barriers = [context.Barrier(clients + 1, timeout=START_SECONDS) for _ in range(2)]
    each = clients // processes
    writers = [
        context.Process(target=log_runs, args=(address, each, points, *barriers)) for _ in range(processes)
    ]
    for writer in writers:
        writer.start()
    barriers[0].wait()
    began = time.perf_counter()
    barriers[1].wait()
    spent = time.perf_counter() - began
    for writer in writers:
        writer.join()
    assert all(writer.exitcode == 0 for writer in writers)
    print(clients * points / spent)


def log_runs(address: str, runs: int, points: int, start: Any, end: Any) -> None:
    """Log to new runs, a thread each, in a process of its own."""
    with ThreadPoolExecutor(runs) as pool:
        for done in [pool.submit(log, address, points, start, end) for _ in range(runs)]:
            done.result()


def log(address: str, points: int, start: Any, end: Any) -> None:
    """Log to a new run."""
    with (
        tempfile.TemporaryDirectory() as spool,
        fw.run("bench-log", address=address, spool=spool, system_metrics=False) as run,
    ):
        assert run.flush()
        start.wait()
        for step in range(points):
            run.log({"loss": 0.5}, step=step)
        assert run.flush(), "the trainer has not acknowledged the points"
        end.wait()


if __name__ == "__main__":
    main()
