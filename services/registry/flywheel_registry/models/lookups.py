"""Look-ups of models and versions that raise an error when the resource does not exist."""

from __future__ import annotations

from flywheel_registry.models.errors import UnknownModel, UnknownModelVersion
from flywheel_registry.models.model import Model
from flywheel_registry.models.names import ModelName, VersionName
from flywheel_registry.models.ports import ModelRecords
from flywheel_registry.models.version import ModelVersion


async def find_model(records: ModelRecords, name: ModelName | str) -> Model:
    """Return the model. Raises UnknownModel."""
    found = await records.model(str(name))
    if found is None:
        raise unknown_model(name)
    return found


async def lock_model(records: ModelRecords, name: str) -> None:
    """Lock the model for the rest of the transaction. Raises UnknownModel."""
    if not await records.lock(name):
        raise unknown_model(name)


async def find_version(records: ModelRecords, name: VersionName) -> ModelVersion:
    """Return the version. Raises UnknownModelVersion."""
    found = await records.version(name.parent, name.number)
    if found is None:
        raise UnknownModelVersion(
            f"Model version {name} does not exist: list the versions of {name.parent}.", model_version=name
        )
    return found


def unknown_model(name: ModelName | str) -> UnknownModel:
    """Return the error for a model that does not exist."""
    return UnknownModel(f"Model {name} does not exist: create it first.", model=name)
