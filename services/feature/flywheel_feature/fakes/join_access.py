"""The access of joins, in memory (port: offline.ports.JoinAccess)."""

from __future__ import annotations

from flywheel_common.granted.access import Access
from flywheel_common.granted.errors import AttemptEnded


class MemoryJoinAccess:
    def __init__(self) -> None:
        self._active: dict[str, tuple[str, Access]] = {}

    async def grant(self, join: str, attempt: str, access: Access) -> None:
        self._active[join] = attempt, access

    async def revoke(self, join: str) -> None:
        self._active.pop(join, None)

    async def access_of(self, attempt: str) -> Access:
        for active, access in self._active.values():
            if active == attempt:
                return access
        raise AttemptEnded.of(attempt)
