"""What feeds what: sources and entities → views → on-demand views → feature sets → model versions. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from flywheel_common.errors import NotFound
from flywheel_feature.definitions.catalog import Catalog
from flywheel_feature.definitions.model import FeatureSet, OnDemandView, VersionRef, View

Edge = tuple[str, str]
"""(resource name of what is read, resource name of what reads it); views and sets with their version."""


@dataclass(frozen=True, slots=True)
class ModelUse:
    """A model version and one feature set that it was trained on or is released with."""

    model_version: str
    set_id: str
    set_version: int
    """0: the model names no version, so it may be any."""
    retired: bool = False
    """Archived or rejected: it keeps nothing from being deleted."""


@dataclass(frozen=True, slots=True)
class ModelUses:
    """Every use of a project's feature sets. `asked` is False when the registry did not answer: then nothing is known."""

    uses: tuple[ModelUse, ...] = ()
    asked: bool = True

    def of_sets(self, sets: Iterable[VersionRef], *, retired: bool = False) -> list[str]:
        """Model versions that use one of these set versions, by name."""
        wanted = set(sets)
        ids = {ref.id for ref in wanted}
        return sorted(
            {
                u.model_version
                for u in self.uses
                if (retired or not u.retired)
                and (
                    VersionRef(u.set_id, u.set_version) in wanted or (u.set_version == 0 and u.set_id in ids)
                )
            }
        )

    def of_view(
        self, catalog: Catalog, view_id: str, version: int = 0, *, retired: bool = False
    ) -> list[str]:
        """Model versions that read a view version (0: any), directly or through an on-demand view."""
        reading = {
            s.ref for s in catalog.feature_sets.values() if any(
                ref.id == view_id and version in (0, ref.version) for ref in _views_of(catalog, s)
            )
        }  # fmt: skip
        return self.of_sets(reading, retired=retired)


class Models(Protocol):
    """The model registry."""

    async def feature_uses(self, project: str) -> Sequence[ModelUse]:
        """Every use of the project's feature sets by a model version of any project, rejected ones included.
        Raises Unavailable when it does not answer."""
        ...


@dataclass(frozen=True, slots=True)
class Lineage:
    """Both ways from one name, transitively; each edge once, sorted."""

    upstream: tuple[Edge, ...]
    downstream: tuple[Edge, ...]


def lineage_of(catalog: Catalog, uses: ModelUses, name: str) -> Lineage:
    """`name` is an entity, source, view, feature set (all versions unless it names one) or model version. Raises NotFound."""
    edges = edges_of(catalog, uses)
    nodes = {node for edge in edges for node in edge} | _names(catalog)
    roots = {n for n in nodes if n == name or n.startswith(f"{name}/versions/")}
    if not roots:
        raise NotFound(
            f"{name} is in no lineage: it does not exist, or it is no entity, source, view, feature set or model version of this "
            "project.",
            reason="UNKNOWN_NAME",
            name=name,
        )
    backwards = [(b, a) for a, b in edges]
    return Lineage(
        tuple(sorted((a, b) for b, a in _reached(backwards, roots))), tuple(sorted(_reached(edges, roots)))
    )


def edges_of(catalog: Catalog, uses: ModelUses) -> list[Edge]:
    """Every edge of the project, deleted versions that something may still read included."""
    prefix = f"projects/{catalog.project}"
    edges: list[Edge] = []
    for view in catalog.views.values():
        if isinstance(view.kind, OnDemandView):
            edges += [(catalog.views[r].name, view.name) for r in view.inputs if r in catalog.views]
            edges += [(f"{prefix}/sources/{s}", view.name) for s in view.kind.request_sources]
        else:
            edges.append((f"{prefix}/sources/{view.kind.source}", view.name))
            edges.append((f"{prefix}/entities/{view.entity}", view.name))
    for feature_set in catalog.feature_sets.values():
        edges += [(catalog.views[r].name, feature_set.name) for r in feature_set.views if r in catalog.views]
    for use in uses.uses:
        edges += [
            (s.name, use.model_version)
            for s in catalog.feature_sets.values()
            if s.id == use.set_id and use.set_version in (0, s.version)
        ]
    return list(dict.fromkeys(edges))


def _names(catalog: Catalog) -> set[str]:
    everything = (catalog.entities, catalog.sources, catalog.views, catalog.feature_sets)
    return {item.name for items in everything for item in items.values()}


def _reached(edges: Sequence[Edge], roots: set[str]) -> set[Edge]:
    following: dict[str, list[str]] = {}
    for a, b in edges:
        following.setdefault(a, []).append(b)
    found: set[Edge] = set()
    waiting, seen = list(roots), set(roots)
    while waiting:
        here = waiting.pop()
        for there in following.get(here, ()):
            found.add((here, there))
            if there not in seen:
                seen.add(there)
                waiting.append(there)
    return found


def _views_of(catalog: Catalog, feature_set: FeatureSet) -> list[VersionRef]:
    """View versions that a set reads, those behind its on-demand views included."""
    direct: list[View] = [catalog.views[r] for r in feature_set.views if r in catalog.views]
    return [ref for view in direct for ref in (view.ref, *view.inputs)]
