"""Processes that log to a run each, for bench.trainer.against_mlflow: prints metrics per second.

    python -m bench.trainer.tracking_load ADDRESS CLIENTS POINTS

The time is that from one start until the trainer has acknowledged the last point of all runs.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
import time
from typing import Any

import flywheel as fw


def main() -> None:
    address, clients, points = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    # A forked process would share the threads and channels of gRPC.
    context = multiprocessing.get_context("spawn")
    start, end = context.Barrier(clients + 1), context.Barrier(clients + 1)
    writers = [context.Process(target=log, args=(address, points, start, end)) for _ in range(clients)]
    for writer in writers:
        writer.start()
    start.wait()
    began = time.perf_counter()
    end.wait()
    spent = time.perf_counter() - began
    for writer in writers:
        writer.join()
    assert all(writer.exitcode == 0 for writer in writers)
    print(clients * points / spent)


def log(address: str, points: int, start: Any, end: Any) -> None:
    """Log to a new run, in a process of its own."""
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
