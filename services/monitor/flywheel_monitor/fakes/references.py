"""`ReferenceSource` over a dictionary."""

from __future__ import annotations

from flywheel_common.errors import Unavailable
from flywheel_monitor.references.reference import Reference


class MemoryReferences:
    """`known`: version → reference. `down`: fetching fails."""

    def __init__(self) -> None:
        self.known: dict[str, Reference] = {}
        self.down = False

    async def fetch(self, model_version: str) -> Reference:
        if self.down:
            raise Unavailable("The registry is down.")
        unknown = Reference(reason="the version is not known")
        return self.known.get(model_version, unknown)
