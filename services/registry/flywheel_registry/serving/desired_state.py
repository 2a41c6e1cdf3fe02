"""The desired state of a model: what its gateways serve, with everything they need to load it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flywheel_registry.models.version import ModelVersion
from flywheel_registry.releases.release import Release
from flywheel_registry.serving.history import warm_releases
from flywheel_registry.serving.ports import ServingRecords


@dataclass(frozen=True, slots=True)
class ServedRelease:
    """A release with its version."""

    release: Release
    version: ModelVersion


@dataclass(frozen=True, slots=True)
class ServingModel:
    """The desired state of one model. `warm` are former releases to keep loaded, newest first."""

    model: str
    generation: int
    champion: ServedRelease | None
    challenger: ServedRelease | None
    rollout: int | None
    shadow_percent: float
    challenger_percent: float
    warm: Sequence[ServedRelease] = ()

    @property
    def project(self) -> str:
        """The id of the model's project."""
        return self.model.split("/")[1]


async def load_serving_model(records: ServingRecords, name: str) -> ServingModel | None:
    """Return the desired state of a model; None while nothing serves."""
    routing = await records.routing(name)
    if routing.champion is None:
        return None

    async def served(number: int | None) -> ServedRelease | None:
        release = await records.release(name, number) if number is not None else None
        version = await records.version(name, release.version) if release is not None else None
        return ServedRelease(release, version) if release is not None and version is not None else None

    warm = [await served(number) for number in warm_releases(await records.spans(name), routing)]
    return ServingModel(
        model=name,
        generation=routing.generation,
        champion=await served(routing.champion),
        challenger=await served(routing.challenger),
        rollout=routing.rollout,
        shadow_percent=routing.shadow_percent,
        challenger_percent=routing.challenger_percent,
        warm=[item for item in warm if item is not None],
    )
