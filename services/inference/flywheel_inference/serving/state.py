"""From desired to served: loads what the registry wants, applies a generation whole, says what is so.

A generation of a model is applied by swapping one route, once every release it needs has passed its golden rows. Until
then the old route serves. A release that cannot be loaded is reported, and the old champion goes on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from flywheel_common.errors import FlywheelError, Internal, NotFound, Unavailable
from flywheel_common.names import Pattern
from flywheel_common.telemetry.logs import get_logger
from flywheel_inference.models.loader import ReleaseLoader
from flywheel_inference.releases.release import Contract, ReleaseSpec
from flywheel_inference.routing.route import Route
from flywheel_inference.scoring.scorer import Lane
from flywheel_inference.serving.desired_state import DesiredModel, ObservedModel
from flywheel_inference.serving.ports import KeptState, RegistryPort
from flywheel_inference.serving.status import ServingStatus

log = get_logger(__name__)

MODEL_NAME = Pattern("projects/{project}/models/{model}")
RETRY_SECONDS = (0.25, 0.5, 1.0, 2.0)
"""Pauses before a release is tried again while a peer does not answer."""
REFUSED_RETRY_SECONDS = 30.0
"""Pause after a refusal that only a repair of the peer's data can cure."""


@dataclass(slots=True, eq=False)
class _Loaded:
    """One release on its way to ready."""

    spec: ReleaseSpec
    lane: Lane | None = None
    failure: str = ""
    refused: bool = False
    attempts: int = 0
    retry_at: float = 0.0
    task: asyncio.Task[None] | None = field(default=None, repr=False)

    @property
    def ready(self) -> bool:
        return self.lane is not None and self.lane.ready


class ServingState:
    """The desired state and what has become of it. `run` is the background task; `route` is read by every request."""

    def __init__(
        self,
        registry: RegistryPort,
        loader: ReleaseLoader,
        kept: KeptState,
        *,
        decode: Callable[[bytes], tuple[list[DesiredModel], dict[str, str]]],
        make_lane: Callable[[ReleaseSpec, Contract], Lane],
        in_use: Callable[[Lane], bool],
        heartbeat_seconds: float = 0.25,
        boot_wait_seconds: float = 3.0,
    ) -> None:
        self._registry = registry
        self._loader = loader
        self._kept = kept
        self._decode = decode
        self._make_lane = make_lane
        self._in_use = in_use
        self._heartbeat_seconds = heartbeat_seconds
        self._boot_wait_seconds = boot_wait_seconds
        self._desired: dict[str, DesiredModel] = {}
        self._undecodable: dict[str, str] = {}
        self._releases: dict[str, _Loaded] = {}
        self._routes: dict[str, Route[Lane]] = {}
        self._whole: dict[str, int] = {}
        self._told = False
        self._settled = False
        self._model_server_up = True
        self._wake = asyncio.Event()
        self._report_now = asyncio.Event()

    # ------------------------------------------------------------------------------------------------ read side
    def route(self, model: str) -> Route[Lane]:
        """The route applied now. Raises NotFound UNKNOWN_MODEL, Unavailable RELEASE_NOT_READY, InvalidArgument."""
        found = self._routes.get(model)
        if found is not None:
            return found
        MODEL_NAME.parse(model)
        desired = self._desired.get(model)
        if desired is not None and desired.champion is not None:
            why = self._failure(desired.champion.name) or "it is being loaded"
            raise Unavailable(
                f"Release {desired.champion.name} is not ready: {why}",
                reason="RELEASE_NOT_READY",
                model=model,
            )
        raise NotFound(
            f"No release serves {model}: register a version, create a release and start its rollout.",
            reason="UNKNOWN_MODEL",
            model=model,
        )

    @property
    def settled(self) -> bool:
        """True once everything desired at boot is loaded or refused; then for ever."""
        return self._settled

    def statuses(self) -> list[ServingStatus]:
        found = []
        for observed in self.observed():
            route = self._routes.get(observed.model)
            found.append(
                ServingStatus(
                    model=observed.model,
                    generation=observed.generation,
                    champion=route.champion.spec.name if route else "",
                    challenger=route.challenger.spec.name if route and route.challenger else "",
                    shadow_percent=route.shadow_percent if route else 0.0,
                    challenger_percent=route.challenger_percent if route else 0.0,
                    ready_releases=observed.ready_releases,
                    failures=observed.failures,
                )
            )
        return found

    def observed(self) -> list[ObservedModel]:
        """What the registry is told."""
        result = []
        for model, desired in self._desired.items():
            names = [spec.name for spec in desired.releases]
            ready = tuple(n for n in names if self._model_server_up and self._releases[n].ready)
            failures = {n: why for n in names if n not in ready and (why := self._failure(n))}
            failures |= {n: why for n, why in self._undecodable.items() if n.startswith(f"{model}/")}
            result.append(ObservedModel(model, self._whole.get(model, 0), ready, failures))
        return result

    # ------------------------------------------------------------------------------------------------ background
    async def run(self) -> None:
        """Boots from disk, then follows the registry until cancelled."""
        content = await asyncio.to_thread(self._kept.load_desired)
        if content is not None:
            self._accept(content)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch())
            group.create_task(self._heartbeat())
            group.create_task(self._look_after_models())
            group.create_task(self._give_up_waiting())
            while True:
                await self._wake.wait()
                self._wake.clear()
                self._start_loads(group)
                if self._apply():
                    self._report_now.set()
                self._retire(group)
                self._settle()

    def lost(self) -> None:
        """A lane found its model gone: load it again."""
        self._wake.set()

    def _accept(self, content: bytes) -> None:
        models, self._undecodable = self._decode(content)
        self._desired = {model.model: model for model in models}
        for model in models:
            for spec in model.releases:
                self._releases.setdefault(spec.name, _Loaded(spec))
        self._told = True
        self._wake.set()

    async def _watch(self) -> None:
        delay = 0.1
        while True:
            try:
                async for content in self._registry.watch():
                    delay = 0.1
                    self._accept(content)
                    await self._keep(content)
            except FlywheelError as error:
                log.warning("registry away: serving the last desired state", reason=error.reason)
            await asyncio.sleep(delay)
            delay = min(delay * 2, 2.0)

    async def _keep(self, content: bytes) -> None:
        try:
            await asyncio.to_thread(self._kept.save_desired, content)
        except OSError as error:
            log.error("desired state not kept: the next boot needs the registry", exc_info=error)

    async def _heartbeat(self) -> None:
        while True:
            self._report_now.clear()
            try:
                await self._registry.report(self.observed(), 1.0)
            except FlywheelError as error:
                log.debug("heartbeat not delivered", reason=error.reason)
            try:
                async with asyncio.timeout(self._heartbeat_seconds):
                    await self._report_now.wait()
            except TimeoutError:
                pass

    async def _look_after_models(self) -> None:
        """Notices a model server that came back empty, and wakes the loop for what is to be tried again."""
        while True:
            await asyncio.sleep(self._heartbeat_seconds)
            ready = [loaded for loaded in self._releases.values() if loaded.ready]
            try:
                for loaded in ready:
                    if not await self._loader.is_loaded(loaded.spec.triton_model) and loaded.lane is not None:
                        log.warning(
                            "model gone from the model server: loading it again",
                            model=loaded.spec.triton_model,
                        )
                        loaded.lane.ready = False
                self._model_server_up = True
            except FlywheelError as error:
                if self._model_server_up:
                    log.warning("model server away: answers are degraded", reason=error.reason)
                self._model_server_up = False
            self._wake.set()

    async def _give_up_waiting(self) -> None:
        await asyncio.sleep(self._boot_wait_seconds)
        self._told = True
        self._wake.set()

    # ------------------------------------------------------------------------------------------------ one turn
    def _start_loads(self, group: asyncio.TaskGroup) -> None:
        now = time.monotonic()
        for desired in self._desired.values():
            for spec in desired.releases:
                loaded = self._releases.setdefault(spec.name, _Loaded(spec))
                if not loaded.ready and loaded.task is None and now >= loaded.retry_at:
                    loaded.task = group.create_task(self._load(loaded))

    async def _load(self, loaded: _Loaded) -> None:
        began = time.monotonic()
        try:
            contract = await self._loader.load(loaded.spec)
        except Exception as caught:
            error = caught if isinstance(caught, FlywheelError) else Internal(f"loading failed: {caught!r}")
            if error is not caught:
                log.error("release cannot be loaded", release=loaded.spec.name, exc_info=caught)
            loaded.failure, loaded.refused = (
                f"{error.reason}: {error.message}",
                (not error.retryable and error is caught),
            )
            wait = (
                REFUSED_RETRY_SECONDS
                if loaded.refused
                else RETRY_SECONDS[min(loaded.attempts, len(RETRY_SECONDS) - 1)]
            )
            loaded.retry_at = time.monotonic() + wait
            loaded.attempts += 1
            log.warning("release not ready", release=loaded.spec.name, reason=error.reason, why=error.message)
            self._report_now.set()
        else:
            if loaded.lane is None:
                loaded.lane = self._make_lane(loaded.spec, contract)
            loaded.lane.ready = True
            loaded.failure, loaded.refused, loaded.attempts = "", False, 0
            log.info("release ready", release=loaded.spec.name, seconds=round(time.monotonic() - began, 3))
        finally:
            loaded.task = None
            self._wake.set()

    def _apply(self) -> bool:
        """Swaps in the routes whose releases are ready; whether anything changed."""
        routes, whole = dict(self._routes), dict(self._whole)
        for model in routes.keys() - self._desired.keys():
            del routes[model]
        for model, desired in self._desired.items():
            if desired.champion is None:
                routes.pop(model, None)
                whole[model] = desired.generation
                continue
            if whole.get(model) == desired.generation and model in routes:
                continue
            champion = self._releases[desired.champion.name]
            takes_part = desired.challenger is not None and (
                desired.shadow_percent > 0 or desired.challenger_percent > 0
            )
            challenger = (
                self._releases[desired.challenger.name] if takes_part and desired.challenger else None
            )
            if not champion.ready:
                continue
            if challenger is None or challenger.ready:
                routes[model] = _route(desired, champion, challenger)
                whole[model] = desired.generation
            elif model not in routes:
                # Nobody serves yet: the champion alone, which is not the generation asked for.
                routes[model] = _route(desired, champion, None)
                whole[model] = 0
        whole = {model: generation for model, generation in whole.items() if model in self._desired}
        changed = whole != self._whole or routes.keys() != self._routes.keys()
        self._routes, self._whole = routes, whole
        if changed:
            log.info("routing applied", generations=whole)
        return changed

    def _retire(self, group: asyncio.TaskGroup) -> None:
        """Forgets releases that nobody wants, routes or still waits for, and unloads models that no other release uses."""
        wanted = {spec.name for desired in self._desired.values() for spec in desired.releases}
        routed = {
            lane.spec.name
            for route in self._routes.values()
            for lane in (route.champion, route.challenger)
            if lane
        }
        retired = False
        for name, loaded in list(self._releases.items()):
            if name in wanted or name in routed or loaded.task is not None:
                continue
            if loaded.lane is not None and (not loaded.lane.idle or self._in_use(loaded.lane)):
                continue
            del self._releases[name]
            retired = True
            if not any(
                other.spec.triton_model == loaded.spec.triton_model for other in self._releases.values()
            ):
                group.create_task(self._unload(loaded.spec.triton_model))
        if retired:
            keep = {a.sha256 for loaded in self._releases.values() for a in loaded.spec.artifacts}
            try:
                self._kept.keep_artifacts(keep)
            except OSError as error:
                log.warning("old artifacts stay on disk", error=str(error))

    async def _unload(self, triton_model: str) -> None:
        try:
            await self._loader.unload(triton_model)
            log.info("model unloaded", model=triton_model)
        except FlywheelError as error:
            log.warning("model not unloaded", model=triton_model, reason=error.reason)

    def _settle(self) -> None:
        if not self._settled and self._told:
            champions = [
                self._releases[d.champion.name] for d in self._desired.values() if d.champion is not None
            ]
            self._settled = all(loaded.ready or loaded.refused for loaded in champions)

    def _failure(self, release: str) -> str:
        loaded = self._releases.get(release)
        if loaded is None:
            return self._undecodable.get(release, "")
        if loaded.ready and not self._model_server_up:
            return "MODEL_SERVER_DOWN: Triton does not answer."
        return loaded.failure


def _route(desired: DesiredModel, champion: _Loaded, challenger: _Loaded | None) -> Route[Lane]:
    assert champion.lane is not None
    return Route(
        model=desired.model,
        generation=desired.generation,
        champion=champion.lane,
        challenger=challenger.lane if challenger is not None else None,
        rollout=desired.rollout if challenger is not None else "",
        shadow_percent=desired.shadow_percent if challenger is not None else 0.0,
        challenger_percent=desired.challenger_percent if challenger is not None else 0.0,
    )
