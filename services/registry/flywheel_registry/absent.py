"""Errors for what is not there, one per kind of resource, and the look-ups that raise them."""

from __future__ import annotations

from flywheel_common.errors import InvalidArgument, NotFound
from flywheel_registry.names import EvidenceName, ModelName, ReleaseName, RolloutName, VersionName
from flywheel_registry.ports import Records
from flywheel_registry.resources import Evidence, Model, ModelVersion, Release, Rollout


class UnknownModel(NotFound):
    reason = "UNKNOWN_MODEL"


class UnknownModelVersion(NotFound):
    reason = "UNKNOWN_MODEL_VERSION"


class UnknownRelease(NotFound):
    reason = "UNKNOWN_RELEASE"


class UnknownRollout(NotFound):
    reason = "UNKNOWN_ROLLOUT"


class UnknownEvidence(NotFound):
    reason = "UNKNOWN_EVIDENCE"


async def find_model(records: Records, name: ModelName | str) -> Model:
    """Raises UnknownModel."""
    found = await records.model(str(name))
    if found is None:
        raise UnknownModel(f"Model {name} does not exist: create it first.", model=name)
    return found


async def lock_model(records: Records, name: str) -> None:
    """Holds the model for the rest of the transaction. Raises UnknownModel."""
    if not await records.lock(name):
        raise UnknownModel(f"Model {name} does not exist: create it first.", model=name)


async def find_version(records: Records, name: VersionName) -> ModelVersion:
    """Raises UnknownModelVersion."""
    found = await records.version(name.parent, name.number)
    if found is None:
        raise UnknownModelVersion(
            f"Model version {name} does not exist: list the versions of {name.parent}.", model_version=name
        )
    return found


async def find_release(records: Records, name: ReleaseName) -> Release:
    """Raises UnknownRelease."""
    found = await records.release(name.parent, name.number)
    if found is None:
        raise UnknownRelease(
            f"Release {name} does not exist: list the releases of {name.parent}.", release=name
        )
    return found


async def find_rollout(records: Records, name: RolloutName) -> Rollout:
    """Raises UnknownRollout."""
    found = await records.rollout(name.parent, name.number)
    if found is None:
        raise UnknownRollout(
            f"Rollout {name} does not exist: list the rollouts of {name.parent}.", rollout=name
        )
    return found


async def find_evidence(records: Records, name: EvidenceName) -> Evidence:
    """Raises UnknownEvidence."""
    found = await records.evidence(name.parent, name.number)
    if found is None:
        raise UnknownEvidence(f"Evidence {name} does not exist.", evidence=name)
    return found


def require_reason(reason: str, action: str) -> str:
    """Raises InvalidArgument REASON_REQUIRED."""
    if not reason.strip():
        raise InvalidArgument(
            f"{action} needs a reason: say why, for the audit.", reason="REASON_REQUIRED", field="reason"
        )
    return reason
