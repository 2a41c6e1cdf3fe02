"""Which services may send measured values as evidence."""

from __future__ import annotations

from collections.abc import Collection

from flywheel_common.context import ROLE_ANY, Principal
from flywheel_registry.evidence.errors import EvidenceProducerRequired


class EvidenceProducers:
    """The callers, by the subject of their token, whose measured values count as evidence."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = frozenset(names)

    def check(self, caller: Principal) -> None:
        """Raises EvidenceProducerRequired unless the caller is named; open mode has no names to compare."""
        if ROLE_ANY in caller.roles or caller.subject in self._names:
            return
        known = ", ".join(sorted(self._names)) or "none"
        raise EvidenceProducerRequired(
            f"{caller.subject} may not send evidence: the registry accepts it from {known}.",
            caller=caller.subject,
        )
