"""`ReferenceSource` over a dictionary."""

from __future__ import annotations

from flywheel_common.errors import Unavailable
from flywheel_monitor.references.reference import Reference


class MemoryReferences:
    """`known`: version → reference. `down`: fetching fails. `models` that exist; None: all do."""

    def __init__(self) -> None:
        self.known: dict[str, Reference] = {}
        self.models: set[str] | None = None
        self.down = False

    async def fetch(self, model_version: str) -> Reference:
        if self.down:
            raise Unavailable("The registry is down.")
        unknown = Reference(reason="the version is not known")
        return self.known.get(model_version, unknown)

    async def has_model(self, model: str) -> bool:
        if self.down:
            raise Unavailable("The registry is down.")
        return self.models is None or model in self.models
