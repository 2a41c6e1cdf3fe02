"""The feature service: every part is one module, `run(room) -> rows`."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from bench import measure
from bench.feature import beside_feast, join, materialize, online, stream
from bench.feature.room import Room
from bench.h2load import ToolMissing

Part = Callable[[Room], Iterable[measure.Row]]
PARTS: dict[str, Part] = {
    "online": online.run,
    "stream": stream.run,
    "materialize": materialize.run,
    "join": join.run,
    "feast-online": beside_feast.run_online,
    "feast-offline": beside_feast.run_offline,
}
"""Materialization empties the online store, so what reads it comes first."""


def run(only: str) -> list[measure.Row]:
    """The parts whose name contains `only`, one after the other on one platform."""
    found: list[measure.Row] = []
    with Room() as room:
        online.fill(room)
        for name, part in PARTS.items():
            if only not in name:
                continue
            measure.console.print(f"feature: {name}")
            try:
                for row in part(room):
                    found.append(row)
                    measure.console.print(
                        f"  {row.name}: {measure.number(row.value)} {row.unit}, ratio {measure.number(row.ratio)} ({row.target})"
                    )
            except ToolMissing as missing:
                measure.console.print(f"  [yellow]left out: {missing}[/]")
    return found
