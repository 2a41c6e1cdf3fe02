"""Benchmarks of the trainer and its jobs; each part is a module with a function `run(only) -> rows`."""

from __future__ import annotations

import importlib

from bench import measure

PARTS = ("export", "jobs", "against_mlflow", "scoring", "steps", "tracking", "tuning")
"""Modules of this package. They are imported when they run, because some are started as processes."""


def run(only: str) -> list[measure.Row]:
    """Run the rows whose part or name contains `only`."""
    found: list[measure.Row] = []
    for name in PARTS:
        measure.console.print(f"trainer: {name}")
        for row in importlib.import_module(f"bench.trainer.{name}").run("" if only in name else only):
            found.append(row)
            measure.console.print(f"  {row.name}: {measure.number(row.value)} {row.unit} ({row.target})")
    return found
