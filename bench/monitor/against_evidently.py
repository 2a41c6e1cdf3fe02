"""A drift verdict on 1,000,000 predictions with 20 features from Parquet, against Evidently
(bench/evidently.in).

Both sides read the same file in a process of their own, with PSI as statistic; the training set of 20,000
rows is known before. A shift of 0.3 standard deviations is in one feature. The monitor computes its other
statistics too.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench import measure
from bench.common.peer import output_of
from bench.monitor.stream_events import FEATURES
from flywheel_local.layout import LOCAL

ROWS, TRAINING_ROWS = 1_000_000, 20_000
ROUNDS, SECONDS = 3, 300
PEER = Path(os.environ.get("FLYWHEEL_BENCH_EVIDENTLY", str(LOCAL / "evidently" / "bin" / "python")))
ROOT = Path(__file__).parents[2]


def run(only: str) -> Iterable[measure.Row]:
    name = "verdict on 1,000,000 x 20 from Parquet"
    if only not in name:
        return
    if not PEER.exists():
        measure.console.print("  evidently is not installed: make bench-peers")
        return
    folder = LOCAL / "bench" / f"evidently-{os.getpid()}"
    folder.mkdir(parents=True)
    try:
        files = folder / "training.parquet", folder / "predictions.parquet"
        for path, rows, shift in zip(files, (TRAINING_ROWS, ROWS), (0.0, 0.3), strict=True):
            rng = np.random.default_rng(rows)
            columns = {name: rng.normal(size=rows) for name in FEATURES}
            columns[FEATURES[0]] += shift
            pq.write_table(pa.table(columns), path)
        ours = [sys.executable, "-m", "bench.monitor.parquet_verdict", *map(str, files)]
        theirs = [str(PEER), str(ROOT / "bench" / "peers" / "evidently_verdict.py"), *map(str, files)]
        pairs = []
        for number in range(ROUNDS):
            sides = [("ours", ours), ("theirs", theirs)][:: -1 if number % 2 else 1]
            found = {side: _measured(command) for side, command in sides}
            pairs.append((found["ours"], found["theirs"]))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    seconds = [(a["seconds"], b["seconds"]) for a, b in pairs]
    memory = [(a["bytes"] / 2**20, b["bytes"] / 2**20) for a, b in pairs]
    yield measure.compared(f"{name}, time", "s", "Evidently", seconds, measure.at_most(1 / 15))
    yield measure.compared(f"{name}, additional memory", "MiB", "Evidently", memory, measure.at_most(0.1))


def _measured(command: list[str]) -> dict[str, float]:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH" or command[0] == sys.executable}
    found = output_of(" ".join(command[:2]), command, SECONDS, environment, ROOT)
    result: dict[str, float] = json.loads(found.splitlines()[-1])
    return result
