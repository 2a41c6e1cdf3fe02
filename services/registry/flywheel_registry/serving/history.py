"""The serving history of a model, and which former releases a rollback would return to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from flywheel_registry.serving.routing import Routing

WARM_RELEASES = 2
"""How many former releases gateways keep loaded, so that a rollback needs no load."""


@dataclass(frozen=True, slots=True)
class ServingSpan:
    """A span of wall time in which one release served.

    `until` is None while it serves; `by_rollback` means that a rollback began the span.
    """

    release: int
    version: int
    since: datetime
    until: datetime | None
    reason: str
    by_rollback: bool = False


def rollback_stack(spans: Sequence[ServingSpan]) -> list[int]:
    """Return the releases that repeated rollbacks would return to, oldest first, the serving one last.

    A promotion pushes its release. A rollback pops the releases above its target, so that a second rollback
    goes further back instead of returning to the release that was just rolled back. `spans` are oldest first.
    """
    stack: list[int] = []
    for span in spans:
        if span.by_rollback and span.release in stack:
            while stack[-1] != span.release:
                stack.pop()
        else:
            if span.release in stack:
                stack.remove(span.release)
            stack.append(span.release)
    return stack


def warm_releases(spans: Sequence[ServingSpan], routing: Routing, count: int = WARM_RELEASES) -> list[int]:
    """Return the `count` former releases to keep loaded, newest first.

    These are the target of a rollback, then the releases that served last. `spans` are oldest first.
    """
    recent: list[int] = []
    for span in reversed(spans):
        if span.release not in recent and span.release not in (routing.champion, routing.challenger):
            recent.append(span.release)
    target = rollback_stack(spans)[-2:-1]
    chosen = [n for n in target if n in recent] + [n for n in recent if n not in target]
    return sorted(chosen[:count], key=recent.index)
