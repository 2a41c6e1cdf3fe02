"""Calls about what is registered: search, lineage, aliases, tags, deletion and restoration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from flywheel.connection import request_id
from flywheel.paging import Listing, list_items
from flywheel.stage_calls import StageCalls
from flywheel_protos.registry.v1 import artifact_pb2, model_pb2, registry_pb2, search_pb2

Bounds = tuple[float | None, float | None]
"""Inclusive (min, max) of a metric; None: no bound."""
Kind = Literal["models", "versions", "releases"]
Sort = Literal["newest", "oldest", "name"]
ORDERS = {
    "newest": search_pb2.SEARCH_ORDER_UNSPECIFIED,
    "oldest": search_pb2.SEARCH_ORDER_OLDEST_FIRST,
    "name": search_pb2.SEARCH_ORDER_NAME,
}


class CatalogCalls(StageCalls):
    """Calls of the registry about the catalog of models."""

    async def search_versions(
        self,
        *,
        models: Sequence[str] = (),
        metrics: Mapping[str, Bounds] | None = None,
        tags: Mapping[str, str] | None = None,
        stages: Sequence[str] = (),
        sources: Sequence[str] = (),
        order_by: str = "",
        sort: Sort = "newest",
        descending: bool = False,
        limit: int | None = 100,
    ) -> Listing:
        """Finds versions of all models of the project that meet all conditions, without golden rows.

        `sources` are full names of things that a version was made from. `order_by` is a metric; without one
        `sort` counts. `descending` is for a metric and for names. Bounds are inclusive; for a strict one use
        `math.nextafter`.
        """
        request = search_pb2.SearchModelVersionsRequest(
            parent=self.parent,
            models=[self.path("models", name) for name in models],
            metrics=[
                search_pb2.MetricBounds(metric=name, min=low, max=high)
                for name, (low, high) in (metrics or {}).items()
            ],
            tags=tags,
            stages=[f"STAGE_{stage}" for stage in stages],
            sources=sources,
            order_by_metric=order_by,
            order=ORDERS[sort],
            descending=descending,
        )
        return await list_items(self.registry.SearchModelVersions, request, "model_versions", limit)

    async def model_lineage(self, resource: str) -> search_pb2.GetLineageResponse:
        """What a resource was made from, and what was made from it.

        `resource` is a full name, or a version as in `resolve_version`.
        """
        name = await self.resolve_version(resource)
        return await self.registry.GetLineage(search_pb2.GetLineageRequest(resource=name))

    # aliases and tags

    async def set_alias(
        self, alias: str, version: str, *, protected: bool | None = None, reason: str = ""
    ) -> search_pb2.ModelAlias:
        """Lets `alias` name a version; creates it or moves it."""
        name = await self.resolve_version(version)
        request = search_pb2.SetModelAliasRequest(
            parent=name.rpartition("/versions/")[0],
            alias_id=alias,
            model_version=name,
            protected=protected,
            reason=reason,
            request_id=request_id(),
        )
        return (await self.registry.SetModelAlias(request)).alias

    async def delete_alias(self, model: str, alias: str, reason: str = "") -> None:
        """Deletes an alias."""
        request = search_pb2.DeleteModelAliasRequest(
            name=f"{self.path('models', model)}/aliases/{alias}", reason=reason, request_id=request_id()
        )
        await self.registry.DeleteModelAlias(request)

    async def version_of_alias(self, model: str, alias: str) -> model_pb2.ModelVersion:
        """The version that an alias names."""
        request = registry_pb2.GetModelVersionRequest(name=await self.resolve_version(f"{model}@{alias}"))
        return (await self.registry.GetModelVersion(request)).model_version

    async def tag(
        self, version: str, tags: Mapping[str, str] | None = None, *, remove: Sequence[str] = ()
    ) -> model_pb2.ModelVersion:
        """Adds or replaces tags of a version, and removes others."""
        request = search_pb2.TagModelVersionRequest(
            name=await self.resolve_version(version), set=tags, remove=remove, request_id=request_id()
        )
        return (await self.registry.TagModelVersion(request)).model_version

    # deletion

    async def delete_registered(self, name: str, reason: str = "", *, stop_serving: bool = False) -> None:
        """Deletes a model, a version or a release, given by its full name; what is in use is refused.

        `stop_serving` archives the champion of a model first.
        """
        match _kind(name):
            case "versions":
                await self.registry.DeleteModelVersion(
                    registry_pb2.DeleteModelVersionRequest(name=name, reason=reason, request_id=request_id())
                )
            case "releases":
                await self.registry.DeleteRelease(
                    artifact_pb2.DeleteReleaseRequest(name=name, reason=reason, request_id=request_id())
                )
            case "models":
                await self.registry.DeleteModel(
                    artifact_pb2.DeleteModelRequest(
                        name=name, reason=reason, stop_serving=stop_serving, request_id=request_id()
                    )
                )

    async def restore_registered(self, name: str, reason: str = "") -> None:
        """Restores a deleted model, version or release, given by its full name."""
        method, request = {
            "versions": ("RestoreModelVersion", artifact_pb2.RestoreModelVersionRequest),
            "releases": ("RestoreRelease", artifact_pb2.RestoreReleaseRequest),
            "models": ("RestoreModel", artifact_pb2.RestoreModelRequest),
        }[_kind(name)]
        await getattr(self.registry, method)(request(name=name, reason=reason, request_id=request_id()))


def _kind(name: str) -> Kind:
    """What a full name names. Raises ValueError."""
    match name.split("/"):
        case ["projects", _, "models", _]:
            return "models"
        case ["projects", _, "models", _, "versions", _]:
            return "versions"
        case ["projects", _, "models", _, "releases", _]:
            return "releases"
    raise ValueError(f"{name!r} is not the full name of a model, a version or a release.")
