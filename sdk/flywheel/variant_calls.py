"""Calls about named variants: releases beside champion and challenger."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from flywheel.connection import Connection, request_id
from flywheel_protos.registry.v1 import model_pb2, registry_pb2


@dataclass(frozen=True)
class Variant:
    """A release that answers `percent` of the subjects that no variant before it has, and gets copies of
    `shadow_percent` of the other requests. `release`: a number or a full name."""

    name: str
    release: str
    percent: float = 0.0
    shadow_percent: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Variant:
        """`holdback=3:10` or, with a shadow share, `next=4:0:25`. Raises ValueError."""
        name, _, rest = text.partition("=")
        release, *shares = rest.split(":")
        if not (name and release and 1 <= len(shares) <= 2):
            raise ValueError(f"{text!r} is no variant: write name=release:percent or name=release:0:shadow")
        return cls(name, release, *map(float, shares))


class VariantCalls(Connection):
    """Calls of the registry about variants."""

    async def set_variants(self, model: str, variants: Iterable[Variant], reason: str) -> model_pb2.Model:
        """Replaces the variants of a model; none removes them."""
        name = self.path("models", model)
        found = [
            model_pb2.Variant(
                name=v.name,
                release=f"{name}/releases/{v.release}" if v.release.isdigit() else v.release,
                percent=v.percent,
                shadow_percent=v.shadow_percent,
            )
            for v in variants
        ]
        request = registry_pb2.SetModelVariantsRequest(
            name=name, variants=found, reason=reason, request_id=request_id()
        )
        changed: model_pb2.Model = (await self.registry.SetModelVariants(request)).model
        return changed
