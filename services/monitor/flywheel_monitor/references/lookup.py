"""Finding the version that a request names."""

from __future__ import annotations

from typing import Protocol

from flywheel_monitor.models.lookup import existing_policy
from flywheel_monitor.models.names import ModelName, VersionName
from flywheel_monitor.models.policy import MonitorPolicy
from flywheel_monitor.models.ports import Policies
from flywheel_monitor.references.errors import NoPredictions
from flywheel_monitor.references.ports import Versions
from flywheel_monitor.references.version import WatchedVersion


class VersionRecords(Policies, Versions, Protocol):
    """Policies and versions."""


async def find_version(records: VersionRecords, name: str) -> WatchedVersion:
    """The version of this name, or the champion of the model of this name. Raises UnknownModel,
    NoPredictions."""
    version, _ = await find_watched(records, name)
    return version


async def find_watched(records: VersionRecords, name: str) -> tuple[WatchedVersion, MonitorPolicy]:
    """`find_version` with the policy of its model."""
    if ModelName.match(name) is not None:
        await existing_policy(records, name)
        champion = await records.champion(name)
        if champion is None:
            raise NoPredictions(f"Model {name} has made no predictions as champion yet.", model=name)
        name = champion
    VersionName.parse(name)
    found = await records.watched(name)
    if found is None:
        raise NoPredictions(f"{name} has made no predictions yet.", model_version=name)
    return found
