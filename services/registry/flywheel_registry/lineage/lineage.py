"""Follows the origins that versions name, and the releases of versions, in both directions."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from flywheel_common.errors import InvalidName
from flywheel_registry.models.names import VersionName
from flywheel_registry.models.search import VersionQuery, sources_of
from flywheel_registry.releases.names import ReleaseName
from flywheel_registry.releases.ports import ReleaseRecords

MAX_EDGES = 1000
"""Edges that are returned in each direction."""


@dataclass(frozen=True, slots=True)
class Edge:
    """`target` was made from `source`; both are full names."""

    source: str
    target: str
    relation: str


@dataclass(frozen=True, slots=True)
class Lineage:
    """Edges in both directions, the nearest first. `truncated`: there are more than MAX_EDGES."""

    upstream: list[Edge]
    downstream: list[Edge]
    truncated: bool


async def lineage_of(records: ReleaseRecords, resource: str) -> Lineage:
    """Return the lineage of a version, a release, or anything that a version names as its origin.

    Only versions and releases of the resource's project are followed. Raises InvalidName for a name outside
    of a project.
    """
    parts = resource.split("/")
    if len(parts) < 4 or parts[0] != "projects" or "" in parts:
        raise InvalidName(f"{resource[:200]!r} is not the full name of a resource in a project.")

    async def origins(name: str) -> list[Edge]:
        return await _origins(records, name)

    async def products(name: str) -> list[Edge]:
        return await _products(records, parts[1], name)

    upstream, more_up = await _walk(resource, origins, lambda edge: edge.source)
    downstream, more_down = await _walk(resource, products, lambda edge: edge.target)
    return Lineage(upstream, downstream, more_up or more_down)


async def _walk(
    start: str, edges_of: Callable[[str], Awaitable[list[Edge]]], beyond: Callable[[Edge], str]
) -> tuple[list[Edge], bool]:
    """Return the edges that can be reached, in breadth-first order, and whether there are more."""
    found: list[Edge] = []
    waiting, seen = deque([start]), {start}
    while waiting:
        for edge in await edges_of(waiting.popleft()):
            if len(found) == MAX_EDGES:
                return found, True
            found.append(edge)
            if beyond(edge) not in seen:
                seen.add(beyond(edge))
                waiting.append(beyond(edge))
    return found, False


async def _origins(records: ReleaseRecords, name: str) -> list[Edge]:
    if ReleaseName.PATTERN.match(name) is not None:
        release = ReleaseName.parse(name)
        of = await records.release(release.parent, release.number)
        return [] if of is None else [Edge(VersionName.of(of.model, of.version), name, "RELEASE")]
    if VersionName.PATTERN.match(name) is not None:
        version = VersionName.parse(name)
        found = await records.version(version.parent, version.number)
        return (
            []
            if found is None
            else [Edge(source, name, relation) for relation, source in sources_of(found).items()]
        )
    return []


async def _products(records: ReleaseRecords, project: str, name: str) -> list[Edge]:
    query = VersionQuery(project, sources=(name,))
    made = await records.search_versions(query, MAX_EDGES + 1)
    edges = [
        Edge(name, version.name, relation)
        for version in made
        for relation, source in sources_of(version).items()
        if source == name
    ]
    if VersionName.PATTERN.match(name) is not None:
        named = VersionName.parse(name)
        releases = await records.releases_of(named.parent, named.number, MAX_EDGES + 1)
        edges += [Edge(name, release.name, "RELEASE") for release in releases]
    return edges
