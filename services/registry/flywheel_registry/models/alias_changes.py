"""Sets, moves and deletes aliases of versions."""

from __future__ import annotations

from collections.abc import Callable

from flywheel_common.clock import Clock
from flywheel_registry.audit.journal import Journal
from flywheel_registry.models.alias import Alias, AliasName
from flywheel_registry.models.errors import RejectedAlias, UnknownAlias
from flywheel_registry.models.lookups import find_model, find_version, lock_model
from flywheel_registry.models.names import VersionName
from flywheel_registry.models.ports import ModelRecords
from flywheel_registry.stages.transitions import Stage


class Aliases:
    """Sets and deletes aliases. `may_protect` raises unless the caller may change a protected alias."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    async def set(
        self,
        records: ModelRecords,
        name: AliasName,
        version: VersionName,
        reason: str,
        by: str,
        *,
        protected: bool | None,
        may_protect: Callable[[], None],
    ) -> Alias:
        """Let the alias name `version`; `protected` None keeps the protection that it has.

        Raises UnknownModel, UnknownModelVersion, RejectedAlias, and what `may_protect` raises.
        """
        await lock_model(records, name.parent)
        found = await find_version(records, version)
        if found.stage is Stage.REJECTED:
            raise RejectedAlias(f"{version} was REJECTED: let the alias name another version.")
        before = await records.alias(name.parent, name.alias)
        protect = protected if protected is not None else before is not None and before.protected
        if protect or (before is not None and before.protected):
            may_protect()
        alias = Alias(name.parent, name.alias, version.number, protect, self._clock.now(), by)
        if before is not None and (before.version, before.protected) == (alias.version, alias.protected):
            return before
        await records.put_alias(alias)
        await Journal(records, name.parent, alias.set_at, by).write(
            "ALIAS",
            str(name),
            from_state=_state(before, name.parent),
            to_state=_state(alias, name.parent),
            reason=reason,
        )
        return alias

    async def delete(
        self, records: ModelRecords, name: AliasName, reason: str, by: str, *, may_protect: Callable[[], None]
    ) -> None:
        """Delete the alias. Raises UnknownModel, UnknownAlias, and what `may_protect` raises."""
        await lock_model(records, name.parent)
        alias = await find_alias(records, name)
        if alias.protected:
            may_protect()
        await records.delete_alias(alias)
        await Journal(records, name.parent, self._clock.now(), by).write(
            "ALIAS", str(name), from_state=_state(alias, name.parent), reason=reason
        )


async def find_alias(records: ModelRecords, name: AliasName) -> Alias:
    """Return the alias. Raises UnknownModel, UnknownAlias."""
    await find_model(records, name.parent)
    found = await records.alias(name.parent, name.alias)
    if found is None:
        raise UnknownAlias(f"Alias {name} does not exist: list the aliases of {name.parent}.", alias=name)
    return found


def _state(alias: Alias | None, model: str) -> str:
    if alias is None:
        return ""
    return VersionName.of(model, alias.version) + (" protected" if alias.protected else "")
