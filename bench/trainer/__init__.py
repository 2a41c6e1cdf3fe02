"""Benchmarks of the trainer and its jobs; each part is a module with a function `run(only) -> rows`."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterable

from bench import measure

PARTS = ("export", "jobs", "against_mlflow", "scoring", "steps", "tracking", "tuning")
"""Modules of this package. They are imported when they run, because some are started as processes."""


def run(only: str) -> list[measure.Row]:
    """Run the part named `only`, or all rows whose part or name contains it."""
    return measure.run_parts("trainer", {name: functools.partial(_run, name) for name in PARTS}, only)


def _run(part: str, only: str) -> Iterable[measure.Row]:
    rows: Iterable[measure.Row] = importlib.import_module(f"bench.trainer.{part}").run(only)
    return rows
