"""Benchmarks of the registry; each part is a function `run(deployment, only) -> rows`."""

from __future__ import annotations

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
    """Run the rows whose part or name contains `only`."""
    found: list[measure.Row] = []
    with Deployment("registry", **QUIET) as deployment:
        for name, part in PARTS.items():
            measure.console.print(f"registry: {name}")
            for row in part(deployment, "" if only in name else only):
                found.append(row)
                measure.progress(row)
    return found
