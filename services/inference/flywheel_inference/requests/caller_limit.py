"""A limit of what one caller holds, so that others keep some."""

from __future__ import annotations

from collections import Counter

from flywheel_common.context import ANONYMOUS, Principal


class CallerLimit:
    """Counts what each authenticated caller holds. In open mode callers cannot be told apart: nothing is
    counted, and no caller is at the limit. Used from one event loop only."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._held: Counter[str] = Counter()

    def held(self, caller: Principal) -> int:
        """What a caller holds now."""
        return self._held[caller.subject]

    def allows(self, caller: Principal, amount: int = 1) -> bool:
        """Whether a caller may take so much more. One that holds nothing may take more than the limit."""
        held = self._held[caller.subject]
        return not held or held + amount <= self.limit

    def add(self, caller: Principal, amount: int) -> None:
        """Adds to what a caller holds; a negative amount is given back."""
        subject = caller.subject
        if subject == ANONYMOUS.subject:
            return
        self._held[subject] += amount
        if not self._held[subject]:
            del self._held[subject]
