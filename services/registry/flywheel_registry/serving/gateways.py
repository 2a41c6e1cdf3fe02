"""Gateways and what they report about the models they serve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime


@dataclass(frozen=True, slots=True)
class ObservedModel:
    """A gateway's report on one model: the generation that it applies, ready releases, and failures."""

    model: str
    generation: int
    ready_releases: Sequence[str] = ()
    failures: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Gateway:
    """A gateway with its newest report.

    `live` means that its last heartbeat is at most one second old. `project` is the id of the project that it
    watches, empty for all.
    """

    id: str
    last_heartbeat: datetime
    live: bool
    observed: Sequence[ObservedModel]
    project: str = ""


def watching_model(model: str, gateways: Sequence[Gateway]) -> list[Gateway]:
    """Return the gateways that watch the model's project, or all projects."""
    project = model.split("/")[1]
    return [gateway for gateway in gateways if gateway.project in ("", project)]
