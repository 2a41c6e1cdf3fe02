"""Benchmarks of the trainer and its jobs; each part is a function `run(only) -> rows`."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from bench import measure
from bench.trainer import export, jobs, scoring, steps, tracking, tuning

Part = Callable[[str], Iterable[measure.Row]]
PARTS: dict[str, Part] = {
    "export": export.run,
    "jobs": jobs.run,
    "scoring": scoring.run,
    "steps": steps.run,
    "tracking": tracking.run,
    "tuning": tuning.run,
}


def run(only: str) -> list[measure.Row]:
    """Run the rows whose part or name contains `only`."""
    found: list[measure.Row] = []
    for name, part in PARTS.items():
        measure.console.print(f"trainer: {name}")
        for row in part("" if only in name else only):
            found.append(row)
            measure.console.print(f"  {row.name}: {measure.number(row.value)} {row.unit} ({row.target})")
    return found
