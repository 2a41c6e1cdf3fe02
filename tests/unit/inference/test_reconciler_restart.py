"""A reconciler that runs again after an unexpected exception."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from flywheel_inference.models.replicas import Replicas
from flywheel_inference.serving.desired_models import DesiredModels
from flywheel_inference.serving.desired_state import DesiredChange, Reference, RoutedModel
from flywheel_inference.serving.reconciler import Reconciler
from flywheel_inference.serving.state import ServingState
from tests.support.builders.inference import LOG_SPEC
from tests.support.eventually import eventually

M = "projects/p/models/m"
RELEASE = replace(LOG_SPEC, name=f"{M}/releases/1", model=M)
WANTED = DesiredChange((RoutedModel(M, 1, Reference(RELEASE.name, "digest")),), snapshot=True)


class State(ServingState):
    """Fails once, right after the load of a release was begun."""

    broken = True

    def settle(self) -> None:
        if self.broken and any(release.task is not None for release in self.releases.values()):
            self.broken = False
            raise RuntimeError("broken")
        super().settle()


class Registry:
    """Wants one release and takes every report."""

    async def watch(self) -> AsyncGenerator[bytes]:
        yield b"1"
        await asyncio.Event().wait()

    async def report(self, *_: Any) -> None: ...


class Everything(Replicas):
    """Has every model."""

    up = True

    def has(self, name: str) -> bool:
        return True


class Loader:
    """Loads at once."""

    def __init__(self) -> None:
        self.replicas = Everything([])

    async def load(self, spec: Any, *, answers: bool) -> Any:
        return SimpleNamespace(), None


class Saved:
    """`reads`: how often the saved desired state was read."""

    def __init__(self) -> None:
        self.reads = 0

    def load_desired(self) -> None:
        self.reads += 1

    def save_desired(self, content: bytes) -> None: ...

    def load_artifact(self, sha256: str) -> bytes:
        return b"specification"


async def test_a_release_whose_load_was_interrupted_is_loaded_by_the_next_run() -> None:
    state, saved = State(), Saved()
    peers: tuple[Any, Any, Any] = Registry(), Loader(), saved
    reconciler = Reconciler(
        state,
        *peers,
        desired=DesiredModels(peers[0], peers[2], lambda reference, content: RELEASE),
        decode=lambda _: DesiredChange(
            (RoutedModel(M, 1, Reference(RELEASE.name, "digest")),), snapshot=True
        ),
        encode=lambda _: b"",
        make_scorer=lambda spec, contract, _: SimpleNamespace(spec=spec, ready=False, idle=True),
        in_use=lambda _: False,
        heartbeat_seconds=0.02,
    )
    with pytest.raises(ExceptionGroup) as caught:
        await asyncio.wait_for(reconciler.run(), 5)
    assert [str(error) for error in caught.value.exceptions] == ["broken"]
    again = asyncio.create_task(reconciler.run())
    try:
        await eventually(lambda: state.settled, within=5)
        assert state.route(M).champion.spec is RELEASE
        assert saved.reads == 1
    finally:
        again.cancel()
        await asyncio.gather(again, return_exceptions=True)
