"""Times of calls of ONNX models on this machine."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from flywheel_job.scoring import INPUT, SCORE, Tensor, open_session

BATCHES = (1, 64)
ROUNDS = 30
CALL_SECONDS = 0.01
"""Time of one round at least, so that the clock's resolution does not count."""


def call_seconds(
    graphs: Mapping[str, bytes], rows: Tensor, batches: tuple[int, ...] = BATCHES
) -> dict[str, dict[int, float]]:
    """Median seconds of a call of each graph with each number of rows, on one thread.

    The graphs take turns, so that a change of the machine's speed affects all alike.
    """
    sessions = {name: open_session(graph) for name, graph in graphs.items()}
    times: dict[str, dict[int, list[float]]] = {name: {size: [] for size in batches} for name in graphs}
    feeds = {size: {INPUT: np.ascontiguousarray(np.resize(rows, (size, rows.shape[1])))} for size in batches}
    calls: dict[tuple[str, int], int] = {}
    for name, session in sessions.items():
        for size, feed in feeds.items():
            session.run([SCORE], feed)
            start = time.perf_counter()
            session.run([SCORE], feed)
            calls[name, size] = max(1, int(CALL_SECONDS / max(time.perf_counter() - start, 1e-7)))
    for _ in range(ROUNDS):
        for name, session in sessions.items():
            for size, feed in feeds.items():
                count = calls[name, size]
                start = time.perf_counter()
                for _ in range(count):
                    session.run([SCORE], feed)
                times[name][size].append((time.perf_counter() - start) / count)
    return {
        name: {size: statistics.median(values) for size, values in of_size.items()}
        for name, of_size in times.items()
    }


def cpu_name() -> str:
    """Model of the CPU, and whether it has 8-bit dot products (VNNI)."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    values = {key.strip(): value.strip() for key, value in fields.items()}
    vnni = "with VNNI" if "vnni" in values.get("flags", "") else "without VNNI"
    return f"{values.get('model name', platform.machine())} {vnni}"
