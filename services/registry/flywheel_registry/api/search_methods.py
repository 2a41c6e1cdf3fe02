"""The methods of RegistryService about aliases, tags, search and lineage."""

from __future__ import annotations

from typing import Any

from flywheel_common.grpc.auth import actor, require_role
from flywheel_common.names import check_id
from flywheel_protos.registry.v1 import search_pb2 as pb
from flywheel_registry.api import convert_models, convert_search, listing
from flywheel_registry.api.convert import check_texts
from flywheel_registry.api.mutations import Mutations
from flywheel_registry.lineage.lineage import lineage_of
from flywheel_registry.models.alias import AliasName
from flywheel_registry.models.alias_changes import Aliases, find_alias
from flywheel_registry.models.lookups import find_model
from flywheel_registry.models.names import ModelName, VersionName
from flywheel_registry.models.ports import ModelRecords
from flywheel_registry.models.tags import VersionTags
from flywheel_registry.permissions import CHANGE_PROTECTED_ALIAS, REQUEST_PERMISSIONS
from flywheel_registry.releases.errors import WrongModel


class SearchMethods(Mutations):
    """Part of the servicer."""

    _aliases: Aliases
    _tags: VersionTags

    async def SetModelAlias(self, request: pb.SetModelAliasRequest, context: Any) -> pb.SetModelAliasResponse:
        model, version = ModelName.parse(request.parent), VersionName.parse(request.model_version)
        if version.parent != str(model):
            raise WrongModel(f"{version} is not a version of {model}.")
        name = AliasName(model.project, model.model, check_id(request.alias_id, "alias_id"))
        protected = request.protected if request.HasField("protected") else None

        async def effect(records: ModelRecords) -> pb.SetModelAliasResponse:
            alias = await self._aliases.set(
                records,
                name,
                version,
                request.reason,
                actor(),
                protected=protected,
                may_protect=_require_protection,
            )
            return pb.SetModelAliasResponse(alias=convert_search.alias_to_proto(alias))

        return await self._mutate("SetModelAlias", request, pb.SetModelAliasResponse, effect)

    async def DeleteModelAlias(
        self, request: pb.DeleteModelAliasRequest, context: Any
    ) -> pb.DeleteModelAliasResponse:
        name = AliasName.parse(request.name)

        async def effect(records: ModelRecords) -> pb.DeleteModelAliasResponse:
            await self._aliases.delete(
                records, name, request.reason, actor(), may_protect=_require_protection
            )
            return pb.DeleteModelAliasResponse()

        return await self._mutate("DeleteModelAlias", request, pb.DeleteModelAliasResponse, effect)

    async def GetModelAlias(self, request: pb.GetModelAliasRequest, context: Any) -> pb.GetModelAliasResponse:
        async with self._store.reading() as records:
            alias = await find_alias(records, AliasName.parse(request.name))
        return pb.GetModelAliasResponse(alias=convert_search.alias_to_proto(alias))

    async def ListModelAliases(
        self, request: pb.ListModelAliasesRequest, context: Any
    ) -> pb.ListModelAliasesResponse:
        parent = str(ModelName.parse(request.parent))
        async with self._store.reading() as records:
            await find_model(records, parent)
            page = await listing.list_aliases(records, parent, request.page_size, request.page_token)
        aliases = map(convert_search.alias_to_proto, page.items)
        return pb.ListModelAliasesResponse(aliases=aliases, next_page_token=page.next_page_token)

    async def TagModelVersion(
        self, request: pb.TagModelVersionRequest, context: Any
    ) -> pb.TagModelVersionResponse:
        name = VersionName.parse(request.name)

        async def effect(records: ModelRecords) -> pb.TagModelVersionResponse:
            version = await self._tags.change(records, name, dict(request.set), request.remove, actor())
            message = convert_models.version_to_proto(version)
            message.ClearField("golden_rows")
            return pb.TagModelVersionResponse(model_version=message)

        return await self._mutate("TagModelVersion", request, pb.TagModelVersionResponse, effect)

    async def SearchModelVersions(
        self, request: pb.SearchModelVersionsRequest, context: Any
    ) -> pb.SearchModelVersionsResponse:
        check_texts(request)
        query = convert_search.version_query(request)
        query.check()
        async with self._store.reading() as records:
            page = await listing.search_versions(records, query, request.page_size, request.page_token)
        versions = map(convert_models.version_to_proto, page.items)
        return pb.SearchModelVersionsResponse(model_versions=versions, next_page_token=page.next_page_token)

    async def GetLineage(self, request: pb.GetLineageRequest, context: Any) -> pb.GetLineageResponse:
        check_texts(request)
        async with self._store.reading() as records:
            lineage = await lineage_of(records, request.resource)
        return pb.GetLineageResponse(
            upstream=map(convert_search.edge_to_proto, lineage.upstream),
            downstream=map(convert_search.edge_to_proto, lineage.downstream),
            truncated=lineage.truncated,
        )


def _require_protection() -> None:
    """Raise RoleRequired unless the caller may change protected aliases."""
    require_role(REQUEST_PERMISSIONS[CHANGE_PROTECTED_ALIAS], CHANGE_PROTECTED_ALIAS)
