"""Follows the desired state: applies changes, and resolves references to releases by digest."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable

from flywheel_common.errors import FlywheelError
from flywheel_common.tasks import TaskGroup
from flywheel_common.telemetry.logs import get_logger
from flywheel_inference.models.errors import DigestMismatch
from flywheel_inference.models.ports import ArtifactCache
from flywheel_inference.releases.release import ReleaseSpec
from flywheel_inference.serving.desired_state import (
    DesiredChange,
    DesiredModel,
    Reference,
    RoutedModel,
    Undecodable,
)
from flywheel_inference.serving.ports import ServingRegistry

log = get_logger(__name__)

DecodeSpec = Callable[[Reference, bytes], ReleaseSpec | Undecodable]
"""Reference and specification → release."""
SPEC_SECONDS = 10.0
"""How long one specification may take."""
FETCHES_AT_ONCE = 16


class DesiredModels:
    """The desired models of this gateway. A specification is fetched once: it is then in memory, and on disk
    by its digest, until no model refers to it."""

    def __init__(self, registry: ServingRegistry, cache: ArtifactCache, decode: DecodeSpec) -> None:
        self._registry = registry
        self._cache = cache
        self._decode = decode
        self._routed: dict[str, RoutedModel] = {}
        self._models: dict[str, DesiredModel] = {}
        self._specs: dict[str, ReleaseSpec | Undecodable] = {}
        self._resolving: set[str] = set()

    @property
    def routed(self) -> list[RoutedModel]:
        """All models in references, by name: what is saved."""
        return [self._routed[name] for name in sorted(self._routed)]

    @property
    def models(self) -> list[DesiredModel]:
        """All models with their releases."""
        return list(self._models.values())

    @property
    def digests(self) -> set[str]:
        """The digests of the specifications in use."""
        return self._specs.keys() | self._resolving

    async def apply(self, change: DesiredChange, *, offline: bool = False) -> None:
        """Apply a change. `offline`: only specifications on disk are used; a release without one is
        undecodable until the next snapshot.

        Raises a retryable FlywheelError when the registry does not return a specification: the routing of all
        models stays as it was.
        """
        wanted = {ref.digest: ref for model in change.models for ref in model.references}
        missing = [
            ref for digest, ref in wanted.items() if not isinstance(self._specs.get(digest), ReleaseSpec)
        ]
        slots = asyncio.Semaphore(FETCHES_AT_ONCE)
        self._resolving = wanted.keys() | set()
        async with TaskGroup() as group:
            tasks = [group.create_task(self._resolve(ref, slots, offline=offline)) for ref in missing]
        for reference, task in zip(missing, tasks, strict=True):
            spec = task.result()
            if isinstance(spec, FlywheelError):
                raise spec
            self._specs[reference.digest] = spec
        if change.snapshot:
            self._routed, self._models = {}, {}
        for name in change.removed:
            self._routed.pop(name, None)
            self._models.pop(name, None)
        for model in change.models:
            self._routed[model.model] = model
            self._models[model.model] = self._with_releases(model)
        used = {ref.digest for model in self._routed.values() for ref in model.references}
        self._specs = {digest: spec for digest, spec in self._specs.items() if digest in used}
        self._resolving = set()

    def _with_releases(self, model: RoutedModel) -> DesiredModel:
        def release(reference: Reference | None) -> ReleaseSpec | Undecodable | None:
            return self._specs[reference.digest] if reference is not None else None

        return DesiredModel(
            model=model.model,
            generation=model.generation,
            champion=release(model.champion),
            challenger=release(model.challenger),
            rollout=model.rollout,
            shadow_percent=model.shadow_percent,
            challenger_percent=model.challenger_percent,
            warm=tuple(self._specs[reference.digest] for reference in model.warm),
            warm_since=model.warm_since,
            variants=tuple(v.with_release(self._specs[v.release.digest]) for v in model.variants),
        )

    async def _resolve(
        self, reference: Reference, slots: asyncio.Semaphore, *, offline: bool
    ) -> ReleaseSpec | Undecodable | FlywheelError:
        """The release, or the retryable error why the registry did not return it."""
        async with slots:
            content = await asyncio.to_thread(self._cache.load_artifact, reference.digest)
            if content is None and offline:
                return Undecodable(reference.release, "Its specification is not on disk.")
            if content is None:
                try:
                    content = await self._fetch(reference)
                except FlywheelError as error:
                    if error.retryable:
                        return error
                    return Undecodable(reference.release, f"{error.reason}: {error.message}")
            return self._decode(reference, content)

    async def _fetch(self, reference: Reference) -> bytes:
        content = await self._registry.spec(reference.release, reference.digest, SPEC_SECONDS)
        if hashlib.sha256(content).hexdigest() != reference.digest:
            raise DigestMismatch(f"The specification of {reference.release} does not have its digest.")
        try:
            await asyncio.to_thread(self._cache.save_artifact, reference.digest, content)
        except OSError as error:
            log.error("specification not saved: the next boot needs the registry", exc_info=error)
        return content
