"""Evidently's drift verdict on a Parquet file of predictions, in its own environment.

Arguments: the file of the training set, the file of the predictions. Prints JSON: seconds from the open
files to the verdict, and the memory that took in bytes. Reading the training set is not measured.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pandas as pd
from evidently import Report
from evidently.presets import DataDriftPreset


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024


def main() -> None:
    training, predictions = sys.argv[1:3]
    reference = pd.read_parquet(training)
    before = resident()
    Path("/proc/self/clear_refs").write_text("5")
    started = time.perf_counter()
    found = Report([DataDriftPreset(method="psi")]).run(pd.read_parquet(predictions), reference)
    metrics = found.dict()["metrics"]
    seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "bytes": peak() - before, "metrics": len(metrics)}))


if __name__ == "__main__":
    main()
