"""Variants in PostgreSQL."""

from __future__ import annotations

from dataclasses import dataclass

from flywheel_monitor.ingest.batches import VariantKey
from flywheel_monitor.references.version import WatchedVersion


@dataclass(frozen=True)
class Variant:
    """A variant with its number in the store and its version."""

    id: int
    key: VariantKey
    version: WatchedVersion

    def is_shadow_of(self, champion: Variant) -> bool:
        """Whether this is a shadow of the champion, with an output that can be compared."""
        return self.key.shadows(champion.key) and champion.version.output.same(self.version.output)
