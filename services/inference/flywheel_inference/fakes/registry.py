"""The gateway's peers in memory, for tests of what asks them. Held to the same contract suites as their RPCs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from flywheel_common.errors import DataLoss, NotFound, Unavailable
from flywheel_inference.releases.release import ArtifactSpec
from flywheel_inference.serving.desired_state import ObservedModel


class MemoryRegistry:
    """`serving.RegistryPort` and `release_loader.ArtifactSource`. `artifacts` are bytes by version and file name; `reports`
    what it was told, in order."""

    def __init__(self, desired: bytes = b"") -> None:
        self.artifacts: dict[tuple[str, str], bytes] = {}
        self.reports: list[tuple[ObservedModel, ...]] = []
        self._desired = desired
        self._down = False
        self._changed = asyncio.Event()

    def want(self, desired: bytes) -> None:
        """The desired state from now on."""
        self._desired = desired
        self._wake()

    def set_down(self, down: bool) -> None:
        """While it is, nothing is answered and streams break."""
        self._down = down
        self._wake()

    async def watch(self) -> AsyncIterator[bytes]:
        while True:
            self._answering()
            changed = self._changed
            yield self._desired
            await changed.wait()

    async def report(self, models: Sequence[ObservedModel], timeout: float) -> None:
        self._answering()
        self.reports.append(tuple(models))

    async def download(self, model_version: str, artifact: ArtifactSpec, timeout: float) -> bytes:
        self._answering()
        content = self.artifacts.get((model_version, artifact.name))
        if content is None:
            raise NotFound(f"{model_version} has no file {artifact.name}.", reason="UNKNOWN_MODEL_VERSION")
        if len(content) > artifact.size_bytes:
            raise DataLoss(
                f"{artifact.name} of {model_version} is longer than the {artifact.size_bytes} bytes declared.",
                reason="WRONG_SIZE",
            )
        return content

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _answering(self) -> None:
        if self._down:
            raise Unavailable("The registry does not answer.", reason="UNAVAILABLE")
