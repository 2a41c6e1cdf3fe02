"""Finding the version that a request names."""

from __future__ import annotations

from typing import Protocol

from flywheel_monitor.models.lookup import existing_policy
from flywheel_monitor.models.names import ModelName, VersionName
from flywheel_monitor.models.ports import Policies
from flywheel_monitor.references.errors import NoPredictions
from flywheel_monitor.references.ports import Versions
from flywheel_monitor.references.version import WatchedVersion


class VersionRecords(Policies, Versions, Protocol):
    """Policies and versions."""


async def find_version(records: VersionRecords, name: str) -> WatchedVersion:
    """The version of this name, or the champion of the model of this name. Raises UnknownModel,
    NoPredictions."""
    if ModelName.match(name) is not None:
        await existing_policy(records, name)
        champion = await records.champion(name)
        if champion is None:
            raise NoPredictions(f"Model {name} has made no predictions as champion yet.", model=name)
        name = champion
    VersionName.parse(name)
    version = await records.version(name)
    if version is None:
        raise NoPredictions(f"{name} has made no predictions yet.", model_version=name)
    return version
