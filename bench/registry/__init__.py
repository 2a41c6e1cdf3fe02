"""Benchmarks of the registry; each part is a function `run(deployment, only) -> rows`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

from bench import measure
from bench.common.deployment import QUIET, Deployment
from bench.registry import against_mlflow, catalog, fan_out, rollback, uploads

Part = Callable[[Deployment, str], Iterable[measure.Row]]
PARTS: dict[str, Part] = {
    "catalog": catalog.run,
    "uploads": uploads.run,
    "mlflow": against_mlflow.run,
    "rollback": rollback.run,
    # Last: its models have no files that a gateway could load.
    "fan-out": fan_out.run,
}


def run(only: str) -> list[measure.Row]:
    """Run the part named `only`, or all rows whose part or name contains it."""
    with Deployment("registry", **QUIET) as deployment:
        parts = {name: functools.partial(part, deployment) for name, part in PARTS.items()}
        return measure.run_parts("registry", parts, only)
