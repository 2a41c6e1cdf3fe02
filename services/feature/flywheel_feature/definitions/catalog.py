"""Definitions of one project as they stand: what references resolve to. Immutable; a change makes a new one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from flywheel_common.errors import NotFound
from flywheel_feature.definitions.model import Entity, FeatureSet, Source, StreamView, VersionRef, View

T = TypeVar("T")


@dataclass(frozen=True)
class Catalog:
    """`views` and `feature_sets` hold every version, also of deleted ones (models may still read them); the `latest_…` maps
    hold what exists."""

    project: str
    revision: int = 0
    entities: Mapping[str, Entity] = field(default_factory=dict)
    sources: Mapping[str, Source] = field(default_factory=dict)
    views: Mapping[VersionRef, View] = field(default_factory=dict)
    feature_sets: Mapping[VersionRef, FeatureSet] = field(default_factory=dict)
    latest_views: Mapping[str, View] = field(default_factory=dict)
    latest_feature_sets: Mapping[str, FeatureSet] = field(default_factory=dict)

    def entity(self, entity_id: str) -> Entity:
        """Raises NotFound UNKNOWN_ENTITY; so do the others, each with its reason."""
        return _found(
            self.entities.get(entity_id),
            "UNKNOWN_ENTITY",
            f"projects/{self.project}/entities/{entity_id}",
            "ListEntities",
        )

    def source(self, source_id: str) -> Source:
        return _found(
            self.sources.get(source_id),
            "UNKNOWN_SOURCE",
            f"projects/{self.project}/sources/{source_id}",
            "ListSources",
        )

    def view(self, view_id: str, version: int = 0) -> View:
        """The latest version when `version` is 0."""
        found = self.views.get(VersionRef(view_id, version)) if version else self.latest_views.get(view_id)
        suffix = f"/versions/{version}" if version else ""
        return _found(found, "UNKNOWN_VIEW", f"projects/{self.project}/views/{view_id}{suffix}", "ListViews")

    def feature_set(self, set_id: str, version: int = 0) -> FeatureSet:
        found = (
            self.feature_sets.get(VersionRef(set_id, version))
            if version
            else self.latest_feature_sets.get(set_id)
        )
        suffix = f"/versions/{version}" if version else ""
        return _found(
            found, "UNKNOWN_FEATURE_SET", f"projects/{self.project}/featureSets/{set_id}{suffix}", "ListFeatureSets"
        )  # fmt: skip

    def live_views(self) -> Iterator[View]:
        """View versions that must be kept up to date: the latest ones and those that an existing set or view is bound to."""
        refs = {view.ref for view in self.latest_views.values()}
        for view in self.latest_views.values():
            refs.update(view.inputs)
        for feature_set in self.feature_sets.values():
            # Models cite set versions, so every version of an existing set stays served.
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


def _found(value: T | None, reason: str, name: str, listing: str) -> T:
    if value is None:
        raise NotFound(
            f"{name} does not exist: apply it first, or look it up with {listing}.", reason=reason, name=name
        )
    return value
