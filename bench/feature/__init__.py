"""Benchmarks of the feature service; each part is a function `run(deployment) -> rows`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

from bench import measure
from bench.feature import against_feast, join, materialize, new_source, online, stream
from bench.feature.deployment import FeatureDeployment

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
    with FeatureDeployment() as deployment:
        online.fill(deployment)
        chosen = {
            name: functools.partial(_run, part, deployment) for name, part in PARTS.items() if only in name
        }
        return measure.run_parts("feature", chosen, "")


def _run(part: Part, deployment: FeatureDeployment, _only: str) -> Iterable[measure.Row]:
    return part(deployment)
