"""Benchmarks of the gateway; each part is a function `run(only) -> rows`."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from bench import measure
from bench.h2load import ToolMissing
from bench.inference import (
    feature_responses,
    gateway,
    hostile_callers,
    model_loading,
    overload,
    triton_restart,
)

Part = Callable[[str], Iterable[measure.Row]]
PARTS: dict[str, Part] = {
    "feature responses": feature_responses.run,
    "gateway": gateway.run,
    "hostile callers": hostile_callers.run,
    "model loading": model_loading.run,
    "overload": overload.run,
    "restart": triton_restart.run,
}


def run(only: str) -> list[measure.Row]:
    """Run the rows whose part or name contains `only`."""
    found: list[measure.Row] = []
    for name, part in PARTS.items():
        measure.console.print(f"inference: {name}")
        try:
            for row in part("" if only in name else only):
                found.append(row)
                measure.console.print(f"  {row.name}: {measure.number(row.value)} {row.unit} ({row.target})")
        except ToolMissing as missing:
            measure.console.print(f"  [yellow]skipped: {missing}[/]")
    return found
