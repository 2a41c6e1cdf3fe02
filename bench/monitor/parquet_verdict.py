"""The monitor's verdict on a Parquet file of predictions, in a process of its own.

Arguments: the file of the training set, the file of the predictions. Prints JSON: seconds from the open
files to the verdict, and the memory that took in bytes. Building the reference is not measured: the monitor
gets it from the feature service.
"""

from __future__ import annotations

import json
import os
import sys
import time

import numpy as np
import pyarrow.parquet as pq

from bench.common.cpu import peak_bytes, reset_peak, resident_bytes
from bench.monitor.stream_events import BINS, HOUR_US, MODEL, START_US, VERSION
from flywheel_monitor.drift.verdict import Verdict
from flywheel_monitor.evaluation.report import report_on
from flywheel_monitor.models.policy import MonitorPolicy
from flywheel_monitor.performance.quality import quality
from flywheel_monitor.references.reference import Reference
from flywheel_monitor.references.version import WatchedVersion
from flywheel_monitor.windows.bins import ColumnReference
from flywheel_monitor.windows.layout import Layout
from flywheel_monitor.windows.pane_sums import sum_panes
from flywheel_monitor.windows.panes import PaneAccumulator
from flywheel_monitor.windows.rows import Rows
from flywheel_monitor.windows.span import Span

PANE_US = 60_000_000
ROWS_AT_ONCE = 16_384


def reference(path: str) -> Reference:
    """The profile of the columns of a training set."""
    columns = []
    table = pq.read_table(path)
    for name in table.column_names:
        values = table[name].to_numpy()
        edges = np.quantile(values, np.arange(1, BINS) / BINS)
        counts = np.bincount(np.searchsorted(edges, values), minlength=BINS)
        moments = float(values.mean()), float(values.std()), float(values.min()), float(values.max())
        columns.append(
            ColumnReference(name, True, tuple(counts.tolist()), 0, tuple(edges.tolist()), (), 0, *moments)
        )
    return Reference(tuple(columns))


def main() -> None:
    training, predictions = sys.argv[1:3]
    found = reference(training)
    version = WatchedVersion(1, VERSION, 1, MODEL, found, Layout.of(found.columns))
    before = resident_bytes(os.getpid())
    reset_peak(os.getpid())
    started = time.perf_counter()
    panes = PaneAccumulator(version.layout, PANE_US)
    # Pages are read as they are needed, not a column of the whole row group.
    file = pq.ParquetFile(predictions, pre_buffer=False, buffer_size=1 << 16)
    done, step = 0, HOUR_US / file.metadata.num_rows
    for batch in file.iter_batches(ROWS_AT_ONCE):
        n = batch.num_rows
        valid = np.ones(n, np.bool_)
        panes.add_rows(
            Rows(
                event_times=START_US + ((done + np.arange(n)) * step).astype(np.int64),
                scores=np.full(n, 0.5),
                outputs=np.full((n, 1), 0.5),
                decisions=valid,
                sources=np.ones(n, np.int64),
                latencies_ms=np.ones(n),
                costs=np.full(n, np.nan),
                failed=~valid,
                segments=("",) * n,
                features={name: (batch[name].to_numpy(), valid) for name in batch.schema.names},
            )
        )
        done += n
    counted = panes.merge({})
    window = sum_panes(version.layout, [(key.start_us, pane) for key, pane in counted.items()])
    report = report_on(
        version, Span(START_US, START_US + HOUR_US), window, quality(window), MonitorPolicy(), 0
    )
    seconds = time.perf_counter() - started
    drifted = sorted(f.feature for f in report.features if f.verdict > Verdict.NO_DRIFT)
    memory = peak_bytes(os.getpid()) - before
    print(json.dumps({"seconds": seconds, "bytes": memory, "drifted": drifted}))


if __name__ == "__main__":
    main()
