"""What users name a version by: its number, an alias, or its full name."""

from __future__ import annotations

from flywheel.connection import Connection
from flywheel_protos.registry.v1 import search_pb2


class VersionReferences(Connection):
    """Finds the version that a reference names. All calls and commands that take a version use it."""

    async def resolve_version(self, reference: str) -> str:
        """The version that `reference` names, as `projects/{project}/models/{model}/versions/{n}`.

        A reference is `model/3` or `model/versions/3` (number 3 of a model of this project), `model@champion`
        (the version that the alias names now), or the full name of a version, which is not checked, or of an
        alias. Raises ValueError for any other text, and NotFound when the alias does not exist.
        """
        model, at, alias = reference.partition("@")
        if at and model and alias:
            return await self._version_of(f"{self.path('models', model)}/aliases/{alias}")
        match reference.split("/"):
            case ["projects", _, "models", _, "aliases", _]:
                return await self._version_of(reference)
            case ["projects", *_]:
                return reference
            case [model, number] | [model, "versions", number] if model and number.isdigit():
                return f"{self.path('models', model)}/versions/{number}"
        raise ValueError(f"{reference!r} is neither `model/number`, `model@alias` nor a full name.")

    async def resolve_served(self, reference: str) -> str:
        """The full name of a model, or of one of its versions as in `resolve_version`."""
        if "/" in reference or "@" in reference:
            return await self.resolve_version(reference)
        return self.path("models", reference)

    async def _version_of(self, alias: str) -> str:
        request = search_pb2.GetModelAliasRequest(name=alias)
        return (await self.registry.GetModelAlias(request)).alias.model_version
