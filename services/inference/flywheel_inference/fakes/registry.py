"""The registry in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

from flywheel_common.errors import NotFound, Unavailable
from flywheel_inference.models.errors import WrongSize
from flywheel_inference.releases.release import ArtifactSpec
from flywheel_inference.serving.observed_state import ObservedModel


class MemoryRegistry:
    """`serving.ServingRegistry` and `models.ArtifactSource`. `artifacts`: bytes by version and file name;
    `specs`: specifications by digest; `reports`: the received reports, in order; `left`: whether the gateway
    left after the last one."""

    def __init__(self, desired: bytes = b"") -> None:
        self.artifacts: dict[tuple[str, str], bytes] = {}
        self.specs: dict[str, bytes] = {}
        self.reports: list[tuple[ObservedModel, ...]] = []
        self.left = False
        self._desired = desired
        self._down = False
        self._changed = asyncio.Event()

    def want(self, desired: bytes) -> None:
        """Sets the next message of every stream, which is also the first of a new one."""
        self._desired = desired
        self._wake()

    def set_down(self, down: bool) -> None:
        """While it is down, calls raise Unavailable and streams break."""
        self._down = down
        self._wake()

    async def watch(self) -> AsyncGenerator[bytes]:
        while True:
            self._check_up()
            changed = self._changed
            yield self._desired
            await changed.wait()

    async def spec(self, release: str, digest: str, timeout: float) -> bytes:
        self._check_up()
        if digest not in self.specs:
            raise NotFound(f"{release} has no specification {digest}.")
        return self.specs[digest]

    async def report(self, models: Sequence[ObservedModel], timeout: float) -> None:
        self._check_up()
        self.reports.append(tuple(models))
        self.left = False

    async def leave(self, timeout: float) -> None:
        self._check_up()
        self.left = True

    async def download(
        self, model_version: str, artifact: ArtifactSpec, timeout: float
    ) -> AsyncGenerator[bytes]:
        self._check_up()
        content = self.artifacts.get((model_version, artifact.name))
        if content is None:
            raise NotFound(f"{model_version} has no file {artifact.name}.")
        if len(content) > artifact.size_bytes:
            raise WrongSize(
                f"{artifact.name} of {model_version} is longer than the declared {artifact.size_bytes} bytes."
            )
        half = len(content) // 2
        for piece in (content[:half], content[half:]):
            yield piece

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _check_up(self) -> None:
        if self._down:
            raise Unavailable("The registry does not answer.")
