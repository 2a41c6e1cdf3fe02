"""The stages of a model version and the legal ways between them.

NONE → STAGING → CANDIDATE → PRODUCTION → ARCHIVED, ARCHIVED → PRODUCTION (rollback only),
any but PRODUCTION → REJECTED, for ever.
"""

from __future__ import annotations

from enum import StrEnum

from flywheel_common.errors import FailedPrecondition


class Stage(StrEnum):
    NONE = "NONE"
    STAGING = "STAGING"
    CANDIDATE = "CANDIDATE"
    PRODUCTION = "PRODUCTION"
    ARCHIVED = "ARCHIVED"
    REJECTED = "REJECTED"


LEGAL: dict[Stage, tuple[Stage, ...]] = {
    Stage.NONE: (Stage.STAGING, Stage.REJECTED),
    Stage.STAGING: (Stage.CANDIDATE, Stage.REJECTED),
    Stage.CANDIDATE: (Stage.PRODUCTION, Stage.REJECTED),
    Stage.PRODUCTION: (Stage.ARCHIVED,),
    Stage.ARCHIVED: (Stage.PRODUCTION, Stage.REJECTED),
    Stage.REJECTED: (),
}
"""From every stage, the stages that may follow."""

LADDER = (Stage.NONE, Stage.STAGING, Stage.CANDIDATE, Stage.PRODUCTION)
"""The way up, one gate per rung."""


class IllegalTransition(FailedPrecondition):
    """The state machine has no such edge; the message names those it has."""

    reason = "ILLEGAL_TRANSITION"


def check(current: Stage, target: Stage, subject: str = "The version", *, why: str = "") -> None:
    """Raises IllegalTransition unless `current` → `target` is an edge."""
    if target not in LEGAL[current]:
        raise illegal(current, target, subject, why=why)


def illegal(current: Stage, target: Stage, subject: str, *, why: str = "") -> IllegalTransition:
    """The error for a transition that does not exist here."""
    legal = LEGAL[current]
    ways = "only " + ", ".join(legal) + " can follow" if legal else "nothing can follow"
    extra = f" {why}" if why else ""
    return IllegalTransition(
        f"{subject} is in stage {current}; {ways}, not {target}.{extra}",
        **{"from": current.value, "to": target.value, "legal": ",".join(legal)},
    )


def path_up(current: Stage, target: Stage | None, subject: str = "The version") -> tuple[Stage, ...]:
    """The rungs to climb to reach `target` (None: the next one), lowest first. Raises IllegalTransition when the
    target is not above. ARCHIVED is left by a rollback, never by a promotion."""
    if current not in LADDER or current is Stage.PRODUCTION:
        hint = "An archived version serves again by RollbackModel." if current is Stage.ARCHIVED else ""
        raise illegal(current, target or Stage.PRODUCTION, subject, why=hint)
    at = LADDER.index(current)
    if target is None:
        return (LADDER[at + 1],)
    if target not in LADDER or LADDER.index(target) <= at:
        raise illegal(current, target, subject)
    return LADDER[at + 1 : LADDER.index(target) + 1]
