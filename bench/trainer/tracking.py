"""What `run.log` costs a training loop per point, while the trainer answers and while it is away.

The loop does nothing else, so that the threads that write and send the points compete with it for the
interpreter all the time.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable
from typing import Any

import flywheel as fw
from bench import measure
from flywheel_local import ports

ROUNDS = 5
POINTS = 200_000
TARGET = measure.at_most(5.0, of_value=True)


def run(only: str) -> Iterable[measure.Row]:
    """The rows whose name contains `only`."""
    for name, away in (("run.log, trainer answers", False), ("run.log, trainer away", True)):
        if only in name:
            value = statistics.median(_round(away=away) for _ in range(ROUNDS))
            yield measure.row(name, value, "µs/point", TARGET)


def _round(*, away: bool) -> float:
    """Microseconds per point of a loop over POINTS calls."""
    if away:
        return _microseconds(f"127.0.0.1:{ports.free(['trainer'])['trainer']}", finish_timeout=0.0)
    command = [sys.executable, "-m", "bench.trainer.memory_trainer"]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:
        assert process.stderr is not None
        address = process.stderr.readline().strip()
        try:
            return _microseconds(address, finish_timeout=120.0)
        finally:
            process.communicate()


def _microseconds(address: str, finish_timeout: float) -> float:
    with tempfile.TemporaryDirectory() as spool, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        run = fw.run("bench", address=address, spool=spool, finish_timeout=finish_timeout)
        begin = time.perf_counter()
        for step in range(POINTS):
            run.log({"loss": 0.5}, step=step)
        spent = time.perf_counter() - begin
        run.finish()
    return spent / POINTS * 1e6
