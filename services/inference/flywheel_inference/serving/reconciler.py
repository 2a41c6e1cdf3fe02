"""Reconciliation of desired and served state: loads releases, applies generations, reports, unloads."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing, suppress

from flywheel_common.errors import FlywheelError, Internal
from flywheel_common.tasks import TaskGroup
from flywheel_common.telemetry.logs import get_logger
from flywheel_inference.models.loader import ReleaseLoader
from flywheel_inference.releases.release import FeatureSetContract, ReleaseSpec
from flywheel_inference.scoring.scorer import ReleaseScorer
from flywheel_inference.serving.desired_models import DesiredModels
from flywheel_inference.serving.desired_state import DesiredChange, RoutedModel
from flywheel_inference.serving.ports import DesiredStateStore, ServingRegistry
from flywheel_inference.serving.state import ServingState
from flywheel_inference.serving.tracked_release import TrackedRelease

log = get_logger(__name__)

Decode = Callable[[bytes], DesiredChange]
"""A message of the watch, or the saved state → change."""
Encode = Callable[[Sequence[RoutedModel]], bytes]
"""All models → the state to save."""
MakeScorer = Callable[[ReleaseSpec, FeatureSetContract, Callable[[], None]], ReleaseScorer]
"""Release, contract, and a callback for a model that the model server lost → scorer."""


LEAVE_SECONDS = 0.5
"""How long a gateway that stops waits for the registry to hear of it."""


class Reconciler:
    """Brings the serving state to the registry's desired state. A release that cannot be loaded is reported
    and retried, and the old champion goes on serving."""

    def __init__(
        self,
        state: ServingState,
        registry: ServingRegistry,
        loader: ReleaseLoader,
        store: DesiredStateStore,
        *,
        desired: DesiredModels,
        decode: Decode,
        encode: Encode,
        make_scorer: MakeScorer,
        in_use: Callable[[ReleaseScorer], bool],
        heartbeat_seconds: float = 0.25,
        unload_seconds: float = 30.0,
        warm_seconds: float = 86_400.0,
        loads_at_once: int = 8,
    ) -> None:
        self._state = state
        self._registry = registry
        self._loader = loader
        self._store = store
        self._desired = desired
        self._decode = decode
        self._encode = encode
        self._make_scorer = make_scorer
        self._in_use = in_use
        self._heartbeat_seconds = heartbeat_seconds
        self._unload_seconds = unload_seconds
        self._warm_seconds = warm_seconds
        self._unload_at: dict[str, float] = {}
        self._loads_at_once = loads_at_once
        self._booted = False
        self._wake = asyncio.Event()
        self._report_now = asyncio.Event()

    async def run(self) -> None:
        """Boots from the local copy, then follows the registry until cancelled. Can be called again after an
        exception: it then continues with the desired state that it has."""
        if not self._booted:
            content = await asyncio.to_thread(self._store.load_desired)
            if content is not None and (saved := self._decode(content)).snapshot:
                await self._accept(saved, offline=True)
            self._booted = True
        for release in self._state.releases.values():
            # A task that was cancelled before its first step has not reset it.
            release.task = None
        self._wake.set()
        try:
            await self._follow()
        except asyncio.CancelledError:
            # The process stops after its last call. Its heartbeats have ended, so the registry forgets it.
            with suppress(FlywheelError):
                await self._registry.leave(LEAVE_SECONDS)
            raise

    async def _follow(self) -> None:
        async with TaskGroup() as group:
            group.create_task(self._watch_registry())
            group.create_task(self._send_heartbeats())
            group.create_task(self._check_models())
            while True:
                await self._wake.wait()
                self._wake.clear()
                self._state.drop_warm(time.time() - self._warm_seconds)
                for release in self._state.due_for_loading(time.monotonic(), self._loads_at_once):
                    release.task = group.create_task(self._load(release))
                if (generations := self._state.apply()) is not None:
                    log.info("routing applied", generations=generations)
                    self._report_now.set()
                await self._retire()
                self._unload_due(group)
                self._state.settle()

    async def _accept(self, change: DesiredChange, *, offline: bool = False) -> None:
        await self._desired.apply(change, offline=offline)
        self._state.accept(self._desired.models)
        self._wake.set()

    # --- background
    async def _watch_registry(self) -> None:
        delay = 0.1
        while True:
            try:
                # Closed at once when a change cannot be applied: the next stream begins with a snapshot.
                async with aclosing(self._registry.watch()) as changes:
                    async for content in changes:
                        await self._accept(self._decode(content))
                        delay = 0.1
                        await self._save()
            except FlywheelError as error:
                log.warning("registry unavailable: serving the last desired state", reason=error.reason)
            await asyncio.sleep(delay)
            delay = min(delay * 2, 2.0)

    async def _save(self) -> None:
        try:
            await asyncio.to_thread(self._store.save_desired, self._encode(self._desired.routed))
        except OSError as error:
            log.error("desired state not saved: the next boot needs the registry", exc_info=error)

    async def _send_heartbeats(self) -> None:
        while True:
            self._report_now.clear()
            try:
                await self._registry.report(self._state.observed(), 1.0)
            except FlywheelError as error:
                log.debug("heartbeat not delivered", reason=error.reason)
            try:
                async with asyncio.timeout(self._heartbeat_seconds):
                    await self._report_now.wait()
            except TimeoutError:
                pass

    async def _check_models(self) -> None:
        """Detects models that model servers lost or never had, and wakes the main loop for retries."""
        replicas = self._loader.replicas
        while True:
            await asyncio.sleep(self._heartbeat_seconds)
            await replicas.check()
            if self._state.model_server_up and not replicas.up:
                log.warning("no model server answers: answers are degraded")
            self._state.model_server_up = replicas.up
            for release in self._state.releases.values():
                if not release.ready or release.scorer is None:
                    continue
                model = release.spec.triton_model
                if not replicas.has(model):
                    log.warning("model lost by the model servers: loading it again", model=model)
                    release.scorer.ready = False
                else:
                    release.incomplete = bool(replicas.lack(model))
            self._wake.set()

    # --- loading, unloading
    async def _load(self, release: TrackedRelease) -> None:
        began = time.monotonic()
        spec = release.spec
        try:
            contract, failure = await self._loader.load(spec, answers=release.ready)
        except Exception as caught:
            error = caught if isinstance(caught, FlywheelError) else Internal(f"loading failed: {caught!r}")
            if error is not caught:
                log.error("release cannot be loaded", release=spec.name, exc_info=caught)
            release.failed(error, time.monotonic(), refused=not error.retryable and error is caught)
            log.warning("release not ready", release=spec.name, reason=error.reason, why=error.message)
            self._report_now.set()
        else:
            release.loaded(release.scorer or self._make_scorer(spec, contract, self._wake.set))
            log.info("release ready", release=spec.name, seconds=round(time.monotonic() - began, 3))
            if failure is not None:
                log.warning("release not on every model server", release=spec.name, why=failure.message)
                release.retry_later(time.monotonic(), refused=not failure.retryable)
        finally:
            release.task = None
            self._wake.set()

    async def _retire(self) -> None:
        """Forgets unused releases and deletes their artifacts; their models are unloaded later."""
        forgotten = self._state.forget_unused(self._in_use)
        if not forgotten:
            return
        left = [release.spec for release in self._state.releases.values()]
        for spec in forgotten:
            self._unload_at[spec.triton_model] = time.monotonic() + self._unload_seconds
        try:
            wanted = {artifact.sha256 for spec in left for artifact in spec.artifacts}
            wanted |= self._desired.digests
            await asyncio.to_thread(self._store.keep_artifacts, wanted)
        except OSError as error:
            log.warning("unused artifacts not deleted", error=str(error))

    def _unload_due(self, group: TaskGroup) -> None:
        """Unloads models that no release has used for `unload_seconds`: other gateways on the same model
        server may apply the new routes later."""
        used = {release.spec.triton_model for release in self._state.releases.values()}
        now = time.monotonic()
        for model, due in list(self._unload_at.items()):
            if model in used:
                del self._unload_at[model]
            elif due <= now:
                del self._unload_at[model]
                group.create_task(self._unload(model))

    async def _unload(self, triton_model: str) -> None:
        try:
            unloaded = await self._loader.unload(triton_model)
        except FlywheelError as error:
            log.warning("model not unloaded: trying again", model=triton_model, reason=error.reason)
            self._unload_at.setdefault(triton_model, time.monotonic() + self._unload_seconds)
        else:
            log.info("model unloaded" if unloaded else "model left to other gateways", model=triton_model)
