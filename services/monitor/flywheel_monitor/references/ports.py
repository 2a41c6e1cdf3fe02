"""Ports of references and watched versions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from flywheel_monitor.models.policy import MonitorPolicy
from flywheel_monitor.references.reference import Reference, ScoreReference
from flywheel_monitor.references.version import WatchedVersion


class ReferenceSource(Protocol):
    """Looks up the reference of a model version. Read only and repeatable. Raises a retryable
    FlywheelError while a peer is unavailable; returns a Reference without columns for a version that has
    no usable training set."""

    async def fetch(self, model_version: str) -> Reference: ...

    async def has_model(self, model: str) -> bool:
        """Whether the registry has the model."""
        ...


class Versions(Protocol):
    """Model versions that have made predictions. The reference of a version is fetched before its first
    prediction is counted and never changes, because its predictions are counted in the reference's bins."""

    async def version(self, name: str) -> WatchedVersion | None: ...

    async def watched(self, name: str) -> tuple[WatchedVersion, MonitorPolicy] | None:
        """A version, with the policy of its model."""
        ...

    async def champion(self, model: str) -> str | None:
        """The version whose SUPPORT-th newest prediction as champion is the newest by event time, so that one
        wrong time decides nothing. Versions with fewer of them come after, by their newest."""
        ...

    async def set_first_window(self, version_id: int, reference: ScoreReference) -> None:
        """Store the scores of the first window served; later calls change nothing."""
        ...

    async def set_first_labels(self, version_id: int, counts: Sequence[int]) -> None:
        """Store the histogram of the labels of the first window judged with labels; later calls change
        nothing."""
        ...
