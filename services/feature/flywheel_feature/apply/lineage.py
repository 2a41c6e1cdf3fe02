"""Lineage: sources and entities → views → on-demand views → feature sets → model versions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from flywheel_feature.apply.errors import UnknownName
from flywheel_feature.definitions.catalog import Catalog
from flywheel_feature.definitions.model import FeatureSet, OnDemandView, VersionRef, View

Edge = tuple[str, str]
"""(resource name that is read, resource name of its reader); names of views and sets include the version."""


@dataclass(frozen=True, slots=True)
class ModelUse:
    """A model version and a feature set that it was trained on or is released with."""

    model_version: str
    set_id: str
    set_version: int
    """0: the model names no version, so it may use any."""
    retired: bool = False
    """The model version is archived or rejected; it does not prevent a deletion."""


@dataclass(frozen=True, slots=True)
class ModelUses:
    """Every use of a project's feature sets by models."""

    uses: tuple[ModelUse, ...] = ()
    known: bool = True
    """False: the registry did not answer, so `uses` is empty."""

    def of_sets(self, sets: Iterable[VersionRef], *, retired: bool = False) -> list[str]:
        """Names of the model versions that use one of these set versions, sorted."""
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
        """Names of the model versions that read a view version (0: any), also through an on-demand view."""

        def is_view(ref: VersionRef) -> bool:
            return ref.id == view_id and version in (0, ref.version)

        sets = {s.ref for s in catalog.feature_sets.values() if any(map(is_view, _views_of(catalog, s)))}
        return self.of_sets(sets, retired=retired)


class Models(Protocol):
    """The model registry's record of which models use which feature sets."""

    async def feature_uses(self, project: str) -> Sequence[ModelUse]:
        """Every use of the project's feature sets by a model version of any project, including rejected ones.

        Raises Unavailable when the registry does not answer.
        """
        ...


@dataclass(frozen=True, slots=True)
class Lineage:
    """Every edge upstream and downstream of one name, transitively; each edge once, sorted."""

    upstream: tuple[Edge, ...]
    downstream: tuple[Edge, ...]


def lineage_of(catalog: Catalog, uses: ModelUses, name: str) -> Lineage:
    """The lineage of an entity, source, view, feature set or model version. Raises UnknownName.

    A view or feature set name without a version stands for all its versions.
    """
    edges = edges_of(catalog, uses)
    nodes = {node for edge in edges for node in edge} | _names(catalog)
    roots = {n for n in nodes if n == name or n.startswith(f"{name}/versions/")}
    if not roots:
        raise UnknownName(
            f"{name} has no lineage: it is not an entity, source, view, feature set or model version "
            "of this project.",
            name=name,
        )
    backwards = [(b, a) for a, b in edges]
    return Lineage(
        tuple(sorted((a, b) for b, a in _reached(backwards, roots))), tuple(sorted(_reached(edges, roots)))
    )


def edges_of(catalog: Catalog, uses: ModelUses) -> list[Edge]:
    """Every edge of the project, including those of deleted versions that models may still read."""
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
    """View versions that a set reads, including the inputs of its on-demand views."""
    direct: list[View] = [catalog.views[r] for r in feature_set.views if r in catalog.views]
    return [ref for view in direct for ref in (view.ref, *view.inputs)]
