"""Benchmarks of the gateway; each part is a function `run(only) -> rows`."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from bench import measure
from bench.inference import (
    feature_responses,
    gateway,
    hostile_callers,
    loop_holds,
    model_loading,
    overload,
    triton_restart,
)

Part = Callable[[str], Iterable[measure.Row]]
PARTS: dict[str, Part] = {
    "feature responses": feature_responses.run,
    "event loop": loop_holds.run,
    "gateway": gateway.run,
    "hostile callers": hostile_callers.run,
    "model loading": model_loading.run,
    "overload": overload.run,
    "restart": triton_restart.run,
}


def run(only: str) -> list[measure.Row]:
    """Run the part named `only`, or all rows whose part or name contains it."""
    return measure.run_parts("inference", PARTS, only)
