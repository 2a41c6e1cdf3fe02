"""The use case of GetOnlineFeatures: finds the read plan of a request and keeps plans for the next ones."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Protocol

from flywheel_common.errors import NotFound
from flywheel_feature.definitions.catalog import Catalog
from flywheel_feature.online.lookup import Encoder, OnlineRows, SharedRead
from flywheel_feature.online.read_plan import ReadPlan, plan_of_features, plan_of_set

PLANS_KEPT = 256


class CatalogCopy(Protocol):
    """The applied definitions of every project, held in memory."""

    def catalog(self, project: str) -> Catalog:
        """The definitions as last read."""
        ...

    async def after_miss(self, project: str) -> Catalog:
        """The definitions, read again because the copy lacks a name; at most a few times a second."""
        ...


class OnlineFeatures:
    """The plans that requests read with; a change of definitions makes new ones."""

    def __init__(
        self, catalogs: CatalogCopy, store: OnlineRows, encoder: Callable[[ReadPlan], Encoder]
    ) -> None:
        self._encoder = encoder
        self._catalogs = catalogs
        self._store = store
        self._by_name: dict[str, tuple[Catalog, SharedRead]] = {}
        self._reads: OrderedDict[tuple[object, ...], SharedRead] = OrderedDict()

    def recent(self, set_name: str) -> SharedRead | None:
        """The read that `remember` stored for this name; None if definitions have changed since."""
        found = self._by_name.get(set_name)
        if found is None or self._catalogs.catalog(found[1].plan.project) is not found[0]:
            return None
        return found[1]

    def remember(self, set_name: str, shared: SharedRead) -> None:
        """Store a read under the feature set's name as requests write it."""
        if len(self._by_name) >= PLANS_KEPT:
            self._by_name.clear()
        self._by_name[set_name] = self._catalogs.catalog(shared.plan.project), shared

    async def of_set(self, project: str, set_id: str, version: int) -> SharedRead:
        """Raises UnknownFeatureSet."""
        return await self._shared(project, ("set", set_id, version))

    async def of_features(self, project: str, features: Sequence[str]) -> SharedRead:
        """Raises UnknownView, UnknownFeature, InvalidName, NoFeatures."""
        return await self._shared(project, ("features", *features))

    async def _shared(self, project: str, wanted: tuple[object, ...]) -> SharedRead:
        catalog = self._catalogs.catalog(project)
        key = (project, catalog.revision, *wanted)
        found = self._reads.get(key)
        if found is not None:
            self._reads.move_to_end(key)
            return found
        try:
            plan = _compile(catalog, wanted)
        except NotFound:
            fresh = await self._catalogs.after_miss(project)
            if fresh.revision == catalog.revision:
                raise
            return await self._shared(project, wanted)
        found = self._reads[key] = SharedRead(plan, self._store, self._encoder)
        while len(self._reads) > PLANS_KEPT:
            self._reads.popitem(last=False)
        return found


def _compile(catalog: Catalog, wanted: tuple[object, ...]) -> ReadPlan:
    if wanted[0] == "set":
        return plan_of_set(catalog, catalog.feature_set(str(wanted[1]), int(str(wanted[2]))))
    return plan_of_features(catalog, [str(w) for w in wanted[1:]])
