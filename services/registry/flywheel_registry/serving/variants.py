"""Sets the variants of a model: releases that answer or copy requests beside champion and challenger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from flywheel_common.clock import Clock
from flywheel_common.names import check_id
from flywheel_registry.audit.journal import Journal
from flywheel_registry.models.lookups import find_version, lock_model
from flywheel_registry.models.names import VersionName
from flywheel_registry.models.variant import Variant
from flywheel_registry.models.version import ModelVersion
from flywheel_registry.releases.lookups import find_release
from flywheel_registry.releases.names import ReleaseName
from flywheel_registry.serving.errors import InvalidVariants, VariantNotAllowed
from flywheel_registry.serving.ports import ServingRecords
from flywheel_registry.stages.transitions import Stage

MAX_VARIANTS = 10
ANSWERING = (Stage.CANDIDATE, Stage.PRODUCTION, Stage.ARCHIVED)
"""Stages of versions that may answer real traffic."""
COPYING = (Stage.STAGING, *ANSWERING)
"""Stages of versions that may get copies of it."""


class Variants:
    """Sets the variants of models."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    async def set(
        self, records: ServingRecords, model: str, variants: Sequence[Variant], reason: str, by: str
    ) -> None:
        """Replace the variants of a model.

        Raises InvalidVariants, InvalidId, UnknownModel, UnknownRelease, VariantNotAllowed.
        """
        check_variants(variants)
        await lock_model(records, model)
        routing, champion = await records.routing(model), await records.champion(model)
        if champion is None:
            raise VariantNotAllowed(f"No release of {model} serves yet, so it can have no variants.")
        if routing.rollout is not None:
            raise VariantNotAllowed(
                f"A rollout of {model} is active, and its evidence belongs to one routing: "
                "change the variants after its end."
            )
        for variant in variants:
            name = ReleaseName.numbered(model, variant.release)
            release = await find_release(records, name)
            version = await find_version(records, VersionName.numbered(model, release.version))
            _check_version(variant, version, champion)
        if tuple(variants) == routing.variants:
            return
        await records.set_routing(
            model, replace(routing, generation=routing.generation + 1, variants=tuple(variants))
        )
        await Journal(records, model, self._clock.now(), by).write(
            "VARIANTS", model, from_state=_text(routing.variants), to_state=_text(variants), reason=reason
        )


def check_variants(variants: Sequence[Variant]) -> None:
    """Raise InvalidVariants or InvalidId for the first invalid variant."""
    names = [check_id(variant.name, "variants.name") for variant in variants]
    if len(names) > MAX_VARIANTS or len(set(names)) != len(names):
        raise InvalidVariants(f"A model has at most {MAX_VARIANTS} variants, each with a name of its own.")
    for variant in variants:
        shares = variant.percent, variant.shadow_percent
        if not all(0 <= share <= 100 for share in shares) or not any(shares):
            raise InvalidVariants(
                f"Variant {variant.name} has {shares[0]:g} percent and {shares[1]:g} percent of copies: "
                "both must lie in 0 to 100, and one above 0."
            )


def _check_version(variant: Variant, version: ModelVersion, champion: ModelVersion) -> None:
    allowed = ANSWERING if variant.percent > 0 else COPYING
    if version.stage not in allowed:
        raise VariantNotAllowed(
            f"{version.name} of variant {variant.name} is in stage {version.stage}, "
            f"it must be in {', '.join(allowed)}."
        )
    if version.signature.output.fingerprint != champion.signature.output.fingerprint:
        raise VariantNotAllowed(
            f"The output of {version.name} of variant {variant.name} differs from the champion's: callers "
            "would get answers of two kinds."
        )


async def refuse_variant(records: ServingRecords, version: ModelVersion) -> None:
    """Raise VariantNotAllowed when a variant serves the version."""
    for variant in (await records.routing(version.model)).variants:
        release = await records.release(version.model, variant.release)
        if release is not None and release.version == version.number:
            raise VariantNotAllowed(
                f"Variant {variant.name} of {version.model} serves {version.name}: remove the variant first."
            )


def _text(variants: Sequence[Variant]) -> str:
    return ", ".join(
        f"{v.name} release {v.release} {v.percent:g} % copies {v.shadow_percent:g} %" for v in variants
    )
