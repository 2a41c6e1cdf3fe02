"""The applied definitions of every project: the store of all versions, and the copy in memory that reads use.

An apply raises the revision of its project and notifies every process. Each process also compares revisions
periodically, so a lost notification delays a change by seconds. While the store is down, reads use the copy.
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
"""Shortest time between two refreshes for missing names."""
RETRY_SECONDS = 0.5
"""Pause before following the store's changes again."""


class DefinitionStore(Protocol):
    """Every version of every definition. Methods raise Unavailable while the database is down.

    Definitions change only through `apply`, which plans (plan.make_plan) against the stored definitions and
    is atomic. Applies of one project are serialized: of two concurrent applies, the second is planned against
    the result of the first. So no version number is used twice, no change is lost, and neither apply is
    refused.

    A version of a view or feature set is immutable except for its metadata, descriptions and freshness SLA,
    and it remains when its name is deleted. A name that is created again continues after its highest version
    number. Entities and sources have no versions. An apply raises the project's revision by one if it changes
    anything.
    """

    async def plan(
        self, project: str, declared: Declared, delete_names: list[str], now: datetime, uses: ModelUses
    ) -> ApplyPlan:
        """The plan of an apply, without applying it. Violations are in the plan. Raises as make_plan does."""
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
        """Plan and store, in a transaction of its own, or `within` one of the caller, who commits it.

        Raises InvalidDefinition or UnknownReference for violations, and as make_plan does.
        """
        ...

    async def changed(self, known: Mapping[str, int]) -> list[Catalog]:
        """Every project whose revision differs from the one in `known`, with all committed changes."""
        ...

    def changes(self) -> AsyncGenerator[None]:
        """Yields when definitions may have changed: at once, after every apply by any process, periodically.

        Ends, or raises Unavailable, when the connection is lost; call it again. The caller closes it.
        """
        ...


class AppliedDefinitions:
    """The copy in memory of a definition store."""

    def __init__(self, store: DefinitionStore) -> None:
        self._store = store
        self.plan, self.apply = store.plan, store.apply
        self._catalogs: dict[str, Catalog] = {}
        self._missed_at = 0.0
        self._listeners: list[Callable[[], None]] = []

    def catalog(self, project: str) -> Catalog:
        """The project as last read, without waiting; an empty catalog for an unknown project."""
        return self._catalogs.get(project) or Catalog(project)

    def projects(self) -> list[Catalog]:
        return list(self._catalogs.values())

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener()` after every change of the copy."""
        self._listeners.append(listener)

    async def after_miss(self, project: str) -> Catalog:
        """The project, read again because the copy lacks a name; at most five times a second."""
        now = time.monotonic()
        if now - self._missed_at > MISS_SECONDS:
            self._missed_at = now
            with suppress(FlywheelError):
                await self.refresh()
        return self.catalog(project)

    async def catalog_with(self, project: str, find: Callable[[Catalog], object]) -> Catalog:
        """The project from the copy, or read again when `find` raises NotFound on the copy."""
        catalog = self.catalog(project)
        try:
            find(catalog)
        except NotFound:
            return await self.after_miss(project)
        return catalog

    async def current(self, project: str) -> Catalog:
        """The project with every committed change. Raises Unavailable while the store is down."""
        await self.refresh()
        return self.catalog(project)

    async def refresh(self) -> None:
        """Read the projects that changed since the last refresh."""
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
            await asyncio.sleep(RETRY_SECONDS)
