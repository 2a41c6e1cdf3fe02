"""Ports for the desired state: the registry, and the local copy."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

from flywheel_inference.serving.observed_state import ObservedModel


class ServingRegistry(Protocol):
    """The registry's serving API. Raises FlywheelError."""

    def watch(self) -> AsyncGenerator[bytes]:
        """Serialized WatchServingResponses, until the stream breaks or ends: the first is the complete
        desired state, each other one a change."""
        ...

    async def spec(self, release: str, digest: str, timeout: float) -> bytes:
        """The specification of a release, serialized. The digest is not verified."""
        ...

    async def report(self, models: Sequence[ObservedModel], timeout: float) -> None:
        """Sends one heartbeat with the observed state."""
        ...

    async def leave(self, timeout: float) -> None:
        """Tells that this gateway has stopped serving; its next report makes it known again."""
        ...


class DesiredStateStore(Protocol):
    """The local copy from which a gateway boots while the registry is unavailable. Blocking; raises OSError.

    `load_desired` returns the state saved last, complete even if the process died while saving; None when
    there is none or it is damaged. `keep_artifacts` deletes the artifacts and specifications whose SHA-256 is
    not wanted.
    """

    def save_desired(self, content: bytes) -> None: ...
    def load_desired(self) -> bytes | None: ...
    def keep_artifacts(self, wanted: set[str]) -> None: ...
