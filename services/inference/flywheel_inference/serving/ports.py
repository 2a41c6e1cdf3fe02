"""TODO docstring."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from flywheel_inference.serving.desired_state import ObservedModel


class RegistryPort(Protocol):
    """`watch` yields the whole desired state, at once and at every change, until the stream breaks or ends; `report` is one
    heartbeat. Both raise FlywheelError."""

    def watch(self) -> AsyncIterator[bytes]: ...
    async def report(self, models: Sequence[ObservedModel], timeout: float) -> None: ...


class KeptState(Protocol):
    """What a gateway boots from while its peers are away: the desired state saved last, whole even where the process died while
    it was saved, None where there is none or it is damaged. `keep_artifacts` drops the files that are not wanted. Blocking;
    raises OSError."""

    def save_desired(self, content: bytes) -> None: ...
    def load_desired(self) -> bytes | None: ...
    def keep_artifacts(self, wanted: set[str]) -> None: ...
