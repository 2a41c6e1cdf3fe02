"""Definitions in memory, for unit tests (port: apply.applied.DefinitionStore)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from flywheel_feature.apply.lineage import ModelUse, ModelUses
from flywheel_feature.apply.plan import Action, ApplyPlan, Change, Declared, make_plan
from flywheel_feature.definitions.catalog import Catalog
from flywheel_feature.definitions.model import Entity, FeatureSet, Source, View


class MemoryDefinitions:
    """Definitions without transactions: `within` must be None."""

    def __init__(self) -> None:
        self._catalogs: dict[str, Catalog] = {}
        self._watchers: set[asyncio.Event] = set()

    async def plan(
        self, project: str, declared: Declared, delete_names: list[str], now: datetime, uses: ModelUses
    ) -> ApplyPlan:
        return make_plan(self._catalog(project), declared, delete_names, now, uses)

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
        assert within is None
        plan = make_plan(self._catalog(project), declared, delete_names, now, uses)
        plan.raise_violations()
        if any(c.action is not Action.UNCHANGED for c in plan.changes):
            self._catalogs[project] = _after(self._catalog(project), plan.changes)
            for watcher in self._watchers:
                watcher.set()
        return plan

    async def changed(self, known: Mapping[str, int]) -> list[Catalog]:
        return [c for p, c in self._catalogs.items() if known.get(p) != c.revision]

    async def changes(self) -> AsyncGenerator[None]:
        changed = asyncio.Event()
        self._watchers.add(changed)
        try:
            while True:
                changed.clear()
                yield
                await changed.wait()
        finally:
            self._watchers.discard(changed)

    def _catalog(self, project: str) -> Catalog:
        return self._catalogs.get(project) or Catalog(project)


def _after(catalog: Catalog, changes: list[Change]) -> Catalog:
    """The catalog after a plan."""
    entities, sources = dict(catalog.entities), dict(catalog.sources)
    views, feature_sets = dict(catalog.views), dict(catalog.feature_sets)
    latest_views, latest_sets = dict(catalog.latest_views), dict(catalog.latest_feature_sets)
    existing: dict[str, dict[str, Any]] = {
        "entities": entities,
        "sources": sources,
        "views": latest_views,
        "featureSets": latest_sets,
    }
    for change in changes:
        match change.definition:
            case Entity() as entity:
                entities[entity.id] = entity
            case Source() as source:
                sources[source.id] = source
            case View() as view:
                views[view.ref] = latest_views[view.id] = view
            case FeatureSet() as feature_set:
                feature_sets[feature_set.ref] = latest_sets[feature_set.id] = feature_set
            case None if change.action is Action.DELETE:
                collection, item = change.name.split("/")[2:]
                del existing[collection][item]
    return replace(
        catalog,
        revision=catalog.revision + 1,
        entities=entities,
        sources=sources,
        views=views,
        feature_sets=feature_sets,
        latest_views=latest_views,
        latest_feature_sets=latest_sets,
    )


class MemoryModels:
    """Uses of feature sets by model versions, as registered (port: apply.lineage.Models)."""

    def __init__(self) -> None:
        self._uses: list[tuple[str, ModelUse]] = []

    def add(self, project: str, use: ModelUse) -> None:
        """Register a model version that uses a feature set of `project`."""
        self._uses.append((project, use))

    async def feature_uses(self, project: str) -> Sequence[ModelUse]:
        return [use for used_in, use in self._uses if used_in == project]
