"""Routing as values: what a model's gateways are told to serve, and which release a rollback goes to.

Releases and rollouts are meant by their numbers; every change of a routing raises `generation` by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from flywheel_common.errors import FailedPrecondition
from flywheel_registry.policy import RolloutPolicy
from flywheel_registry.rollout import Progress, RolloutState

WARM_RELEASES = 2
"""Former releases that stay loaded, so that a rollback needs no load."""


class NothingToRollBackTo(FailedPrecondition):
    reason = "NOTHING_TO_ROLL_BACK_TO"


@dataclass(frozen=True, slots=True)
class Routing:
    """One model's desired state. `challenger` and `rollout` are set while a rollout is active."""

    generation: int = 0
    champion: int | None = None
    challenger: int | None = None
    rollout: int | None = None
    shadow_percent: float = 0.0
    challenger_percent: float = 0.0


@dataclass(frozen=True, slots=True)
class Span:
    """A span of wall time in which one release served. `by_rollback`: a rollback began it; `until` None: still serves."""

    release: int
    version: int
    since: datetime
    until: datetime | None
    reason: str
    by_rollback: bool = False


def crowned(routing: Routing, release: int) -> Routing:
    """`release` serves everybody; no rollout is left."""
    return Routing(routing.generation + 1, champion=release)


def following(
    routing: Routing, rollout: int, challenger: int, progress: Progress, policy: RolloutPolicy
) -> Routing:
    """The routing that a rollout's state asks for. A pause keeps what is; an end without promotion leaves the champion
    alone; PROMOTED crowns the challenger."""
    match progress.state:
        case RolloutState.PAUSED:
            return routing
        case RolloutState.SHADOW:
            wanted = replace(
                routing,
                challenger=challenger,
                rollout=rollout,
                shadow_percent=policy.shadow_share,
                challenger_percent=0.0,
            )
        case RolloutState.CANARY:
            wanted = replace(
                routing,
                challenger=challenger,
                rollout=rollout,
                shadow_percent=0.0,
                challenger_percent=progress.challenger_percent,
            )
        case RolloutState.PROMOTED:
            return crowned(routing, challenger)
        case RolloutState.REFUSED | RolloutState.ROLLED_BACK | RolloutState.ABORTED:
            wanted = replace(
                routing, challenger=None, rollout=None, shadow_percent=0.0, challenger_percent=0.0
            )
    return routing if wanted == routing else replace(wanted, generation=routing.generation + 1)


def standing(spans: Sequence[Span]) -> list[int]:
    """The releases that lead to the present, oldest first, the serving one last. A promotion adds to them; a rollback to
    one of them removes those after it, so that a second rollback goes further back instead of returning to what was
    just taken away. `spans` are oldest first."""
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


def rollback_target(spans: Sequence[Span], wanted: int | None = None) -> int:
    """The release to go back to: the one that served before, or `wanted` if it ever served. `spans` are oldest first.
    Raises NothingToRollBackTo."""
    if not spans:
        raise NothingToRollBackTo("Nothing serves yet: promote a release first.")
    serving = spans[-1].release
    if wanted is not None:
        if wanted == serving:
            raise NothingToRollBackTo(f"Release {wanted} serves already.")
        if all(span.release != wanted for span in spans):
            served = ", ".join(str(n) for n in sorted({span.release for span in spans} - {serving})) or "none"
            raise NothingToRollBackTo(f"Release {wanted} never served; releases that did before: {served}.")
        return wanted
    stack = standing(spans)
    if len(stack) < 2:
        raise NothingToRollBackTo(
            f"Release {serving} is the first that served (or all before it were rolled back): name one with to_release, or promote another."
        )
    return stack[-2]


def warm(spans: Sequence[Span], routing: Routing, count: int = WARM_RELEASES) -> list[int]:
    """The `count` former releases to keep loaded, newest first: the one that a rollback would go to, then those that
    served last. `spans` are oldest first."""
    recent: list[int] = []
    for span in reversed(spans):
        if span.release not in recent and span.release not in (routing.champion, routing.challenger):
            recent.append(span.release)
    target = standing(spans)[-2:-1]
    chosen = [n for n in target if n in recent] + [n for n in recent if n not in target]
    return sorted(chosen[:count], key=recent.index)
