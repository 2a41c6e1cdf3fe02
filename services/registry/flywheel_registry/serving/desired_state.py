"""The desired state of a model: what its gateways serve, in references to immutable specifications."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from flywheel_registry.models.variant import Variant
from flywheel_registry.models.version import ModelVersion
from flywheel_registry.releases.release import Release
from flywheel_registry.serving.history import ServingSpan, warm_releases
from flywheel_registry.serving.ports import ServingRecords
from flywheel_registry.serving.warm import usable

Digest = Callable[[Release, ModelVersion], str]
"""Release and its version → SHA-256 of the specification."""


@dataclass(frozen=True, slots=True)
class ServedRelease:
    """A release by its number, with the digest of its specification."""

    release: int
    digest: str


@dataclass(frozen=True, slots=True)
class ServedVariant:
    """A variant with its release."""

    variant: Variant
    served: ServedRelease


@dataclass(frozen=True, slots=True)
class ServingModel:
    """The desired state of one model. `warm` are former releases to keep loaded, newest first;
    `warm_since` is when each stopped serving."""

    model: str
    generation: int
    champion: ServedRelease | None
    challenger: ServedRelease | None
    rollout: int | None
    shadow_percent: float
    challenger_percent: float
    warm: Sequence[ServedRelease] = ()
    variants: Sequence[ServedVariant] = ()
    warm_since: Sequence[datetime] = ()

    @property
    def project(self) -> str:
        """The id of the model's project."""
        return self.model.split("/")[1]

    @property
    def digests(self) -> dict[int, str]:
        """Release → digest of its specification."""
        served = (self.champion, self.challenger, *self.warm, *(v.served for v in self.variants))
        return {one.release: one.digest for one in served if one is not None}


@dataclass(frozen=True, slots=True)
class ServingChange:
    """Models that changed, and names of models that nothing serves any more. `snapshot`: `models` are all."""

    models: Sequence[ServingModel]
    removed: Sequence[str] = ()
    snapshot: bool = False


async def load_serving_model(
    records: ServingRecords, name: str, digest: Digest, known: Mapping[int, str]
) -> ServingModel | None:
    """Return the desired state of a model; None while nothing serves and no first release waits for gateways.

    `known` are digests of releases that need not be computed again: releases never change.
    """
    routing = await records.routing(name)
    if routing.champion is None and routing.challenger is None:
        return None

    async def served(number: int | None) -> ServedRelease | None:
        if number is None:
            return None
        if number in known:
            return ServedRelease(number, known[number])
        release = await records.release(name, number)
        version = await records.version(name, release.version) if release is not None else None
        if release is None or version is None:
            return None
        return ServedRelease(number, digest(release, version))

    variants = [(variant, await served(variant.release)) for variant in routing.variants]
    spans = await _usable_spans(records, name)
    newest = {span.release: span for span in spans}
    warm = [(await served(number), newest[number]) for number in warm_releases(spans, routing)]
    return ServingModel(
        model=name,
        generation=routing.generation,
        champion=await served(routing.champion),
        challenger=await served(routing.challenger),
        rollout=routing.rollout,
        shadow_percent=routing.shadow_percent,
        challenger_percent=routing.challenger_percent,
        warm=[item for item, _ in warm if item is not None],
        warm_since=[span.until or span.since for item, span in warm if item is not None],
        variants=[ServedVariant(variant, one) for variant, one in variants if one is not None],
    )


async def _usable_spans(records: ServingRecords, name: str) -> list[ServingSpan]:
    """Return the serving history without releases that a rollback would refuse."""
    spans = await records.spans(name)
    served = {span.release for span in spans}
    unusable = {number for number in served if not await usable(records, name, number)}
    return [span for span in spans if span.release not in unusable]
