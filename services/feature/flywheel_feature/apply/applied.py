"""The applied definitions of every project: a store of all their versions, and the copy of them in memory that every read uses.

An apply raises its project's revision; every process hears of it, and compares revisions now and then besides, so that a lost
notification costs seconds, not correctness. While the store is away the copy goes on serving.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing, suppress
from datetime import datetime
from typing import Any, Protocol

from flywheel_common.errors import FlywheelError, NotFound
from flywheel_common.telemetry.logs import get_logger
from flywheel_feature.apply.lineage import ModelUses
from flywheel_feature.apply.plan import ApplyPlan, Declared
from flywheel_feature.definitions.catalog import Catalog

log = get_logger(__name__)

MISS_SECONDS = 0.2
AGAIN_SECONDS = 0.5


class DefinitionStore(Protocol):
    """Every version of every definition. Raises Unavailable while the database is away.

    Definitions change by `apply` alone. It is planned (apply_plan.make_plan) against what is stored at that moment, and stored
    whole or not at all. Applies of one project take turns: the later of two that come at once is planned against what the
    earlier left, so no version number is given twice, no change is lost, and nobody is refused for having come second.

    What defines a version of a view or feature set never changes, and the version stays when its name is deleted; only what
    people say of it (metadata, descriptions, freshness SLA) may change. A name that comes again goes on with the number after
    the highest that it ever had. Entities and sources have no versions. An apply that changes anything raises its project's
    revision by one, another leaves it.
    """

    async def plan(
        self, project: str, declared: Declared, delete_names: list[str], now: datetime, uses: ModelUses
    ) -> ApplyPlan:
        """What an apply would do; changes nothing. Violations are in the plan. Raises what make_plan raises."""
        ...

    async def apply(
        self,
        project: str,
        declared: Declared,
        delete_names: list[str],
        now: datetime,
        uses: ModelUses,
        *,
        within: Any = None,
    ) -> ApplyPlan:
        """Carry the plan out, in a transaction of its own or `within` one of the same database that the caller commits.

        Raises InvalidArgument INVALID_DEFINITION, UNKNOWN_REFERENCE for violations, and what make_plan raises.
        """
        ...

    async def changed(self, known: Mapping[str, int]) -> list[Catalog]:
        """Every project whose revision is another than the one known, with all that is committed."""
        ...

    def changes(self) -> AsyncGenerator[None]:
        """Tells that something may have changed: at once, soon after every apply by any process, and now and then besides.

        Ends, or raises Unavailable, when the store was lost: ask again. Close it when done.
        """
        ...


class AppliedDefinitions:
    """`catalog` and `knowing` never wait for the store when the copy knows the answer."""

    def __init__(self, store: DefinitionStore) -> None:
        self._store = store
        self.plan, self.apply = store.plan, store.apply
        self._catalogs: dict[str, Catalog] = {}
        self._missed_at = 0.0
        self._listeners: list[Callable[[], None]] = []

    def catalog(self, project: str) -> Catalog:
        """The project as last read; empty when there is none."""
        return self._catalogs.get(project) or Catalog(project)

    def projects(self) -> list[Catalog]:
        return list(self._catalogs.values())

    def on_change(self, listener: Callable[[], None]) -> None:
        """`listener()` is called after the copy took in a change."""
        self._listeners.append(listener)

    async def after_miss(self, project: str) -> Catalog:
        """The project read again, for a name that the copy lacks; at most five times a second."""
        now = time.monotonic()
        if now - self._missed_at > MISS_SECONDS:
            self._missed_at = now
            with suppress(FlywheelError):
                await self.refresh()
        return self.catalog(project)

    async def knowing(self, project: str, look: Callable[[Catalog], object]) -> Catalog:
        """The project from the copy, read again when `look` raises NotFound."""
        catalog = self.catalog(project)
        try:
            look(catalog)
        except NotFound:
            return await self.after_miss(project)
        return catalog

    async def current(self, project: str) -> Catalog:
        """The project with every committed change. Raises Unavailable while the store is away."""
        await self.refresh()
        return self.catalog(project)

    async def refresh(self) -> None:
        """Read what changed since the last time."""
        known = {project: catalog.revision for project, catalog in self._catalogs.items()}
        changed = await self._store.changed(known)
        self._catalogs.update({catalog.project: catalog for catalog in changed})
        if changed:
            for listener in self._listeners:
                listener()

    async def follow(self) -> None:
        """Keep the copy current until cancelled."""
        while True:
            try:
                async with aclosing(self._store.changes()) as changes:
                    async for _ in changes:
                        await self.refresh()
            except FlywheelError as error:
                log.warning("definitions not refreshed", reason=error.reason)
            await asyncio.sleep(AGAIN_SECONDS)
