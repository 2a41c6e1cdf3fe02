"""Benchmarks of the monitor; each part is a function `run(only) -> rows`."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from bench import measure
from bench.monitor import (
    against_evidently,
    calibration,
    concept_calibration,
    experiments,
    fifty_models,
    reads,
    throughput,
    vector_calibration,
)

Part = Callable[[str], Iterable[measure.Row]]
PARTS: dict[str, Part] = {
    "calibration": calibration.run,
    "concept": concept_calibration.run,
    "vectors": vector_calibration.run,
    "experiments": experiments.run,
    "evidently": against_evidently.run,
    "fifty_models": fifty_models.run,
    "reads": reads.run,
    "throughput": throughput.run,
}


def run(only: str) -> list[measure.Row]:
    """Run the part named `only`, or all rows whose part or name contains it."""
    return measure.run_parts("monitor", PARTS, only)
