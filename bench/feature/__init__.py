"""Benchmarks of the feature service; each part is a function `run(deployment) -> rows`."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from bench import measure
from bench.feature import against_feast, join, materialize, new_source, online, stream
from bench.feature.deployment import FeatureDeployment
from bench.h2load import ToolMissing

Part = Callable[[FeatureDeployment], Iterable[measure.Row]]
PARTS: dict[str, Part] = {
    "online": online.run,
    "stream": stream.run,
    "new-source": new_source.run,
    "materialize": materialize.run,
    "join": join.run,
    "feast-online": against_feast.run_online,
    "feast-offline": against_feast.run_offline,
}
"""Materialization empties the online store, so that parts that read it come first."""


def run(only: str) -> list[measure.Row]:
    """Run the parts whose name contains `only`, one after the other on one deployment."""
    found: list[measure.Row] = []
    with FeatureDeployment() as deployment:
        online.fill(deployment)
        for name, part in PARTS.items():
            if only not in name:
                continue
            measure.console.print(f"feature: {name}")
            try:
                for row in part(deployment):
                    found.append(row)
                    value, ratio = measure.number(row.value), measure.number(row.ratio)
                    measure.console.print(f"  {row.name}: {value} {row.unit}, ratio {ratio} ({row.target})")
            except ToolMissing as missing:
                measure.console.print(f"  [yellow]skipped: {missing}[/]")
    return found
