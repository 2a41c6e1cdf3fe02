"""An immutable snapshot of one project's definitions: resolves references. A change makes a new snapshot."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from flywheel_common.errors import NotFound
from flywheel_feature.definitions.errors import UnknownEntity, UnknownFeatureSet, UnknownSource, UnknownView
from flywheel_feature.definitions.model import Entity, FeatureSet, Source, StreamView, VersionRef, View

T = TypeVar("T")


@dataclass(frozen=True)
class Catalog:
    """The definitions of a project at one revision.

    `views` and `feature_sets` hold every version, also of deleted names, because models may still read them.
    The `latest_…` maps hold the newest version of every name that exists.
    """

    project: str
    revision: int = 0
    entities: Mapping[str, Entity] = field(default_factory=dict)
    sources: Mapping[str, Source] = field(default_factory=dict)
    views: Mapping[VersionRef, View] = field(default_factory=dict)
    feature_sets: Mapping[VersionRef, FeatureSet] = field(default_factory=dict)
    latest_views: Mapping[str, View] = field(default_factory=dict)
    latest_feature_sets: Mapping[str, FeatureSet] = field(default_factory=dict)

    def entity(self, entity_id: str) -> Entity:
        """Raises UnknownEntity."""
        found = self.entities.get(entity_id)
        return self._found(found, f"entities/{entity_id}", UnknownEntity, "ListEntities")

    def source(self, source_id: str) -> Source:
        """Raises UnknownSource."""
        found = self.sources.get(source_id)
        return self._found(found, f"sources/{source_id}", UnknownSource, "ListSources")

    def view(self, view_id: str, version: int = 0) -> View:
        """The latest version when `version` is 0. Raises UnknownView."""
        found = self.views.get(VersionRef(view_id, version)) if version else self.latest_views.get(view_id)
        return self._found(found, f"views/{view_id}{_suffix(version)}", UnknownView, "ListViews")

    def feature_set(self, set_id: str, version: int = 0) -> FeatureSet:
        """The latest version when `version` is 0. Raises UnknownFeatureSet."""
        ref = VersionRef(set_id, version)
        found = self.feature_sets.get(ref) if version else self.latest_feature_sets.get(set_id)
        name = f"featureSets/{set_id}{_suffix(version)}"
        return self._found(found, name, UnknownFeatureSet, "ListFeatureSets")

    def live_views(self) -> Iterator[View]:
        """View versions to keep up to date: the latest ones and those that existing sets or views read."""
        refs = {view.ref for view in self.latest_views.values()}
        for view in self.latest_views.values():
            refs.update(view.inputs)
        for feature_set in self.feature_sets.values():
            # Models name set versions, so every version of an existing set is served.
            if feature_set.id in self.latest_feature_sets:
                refs.update(feature_set.views)
        for ref in list(refs):
            if ref in self.views:
                refs.update(self.views[ref].inputs)
        yield from (self.views[ref] for ref in sorted(refs) if ref in self.views)

    def stream_views(self, source_id: str) -> list[View]:
        """Live stream view versions that read a source."""
        return [v for v in self.live_views() if isinstance(v.kind, StreamView) and v.kind.source == source_id]

    def readers_of_view(self, view_id: str) -> list[str]:
        """Resource names of the latest sets and on-demand views that read a view."""
        sets = [
            s.name for s in self.latest_feature_sets.values() if any(ref.id == view_id for ref in s.views)
        ]
        views = [v.name for v in self.latest_views.values() if any(ref.id == view_id for ref in v.inputs)]
        return sorted(sets + views)

    def _found(self, value: T | None, path: str, error: type[NotFound], list_method: str) -> T:
        if value is None:
            name = f"projects/{self.project}/{path}"
            message = f"{name} does not exist: apply it first, or look it up with {list_method}."
            raise error(message, name=name)
        return value


CatalogReader = Callable[[str], Awaitable[Catalog]]
"""Reads the definitions of a project with every committed change. Raises Unavailable."""


def _suffix(version: int) -> str:
    return f"/versions/{version}" if version else ""
