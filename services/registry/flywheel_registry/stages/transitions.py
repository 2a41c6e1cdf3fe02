"""The stages of a model version and the legal transitions between them.

NONE → STAGING → CANDIDATE → PRODUCTION → ARCHIVED. ARCHIVED → PRODUCTION happens by rollback only. NONE,
STAGING, CANDIDATE and ARCHIVED may change to REJECTED, which is final.
"""

from __future__ import annotations

from enum import StrEnum

from flywheel_registry.stages.errors import IllegalTransition


class Stage(StrEnum):
    """The stage of a model version."""

    NONE = "NONE"
    STAGING = "STAGING"
    CANDIDATE = "CANDIDATE"
    PRODUCTION = "PRODUCTION"
    ARCHIVED = "ARCHIVED"
    REJECTED = "REJECTED"


LEGAL_TRANSITIONS: dict[Stage, tuple[Stage, ...]] = {
    Stage.NONE: (Stage.STAGING, Stage.REJECTED),
    Stage.STAGING: (Stage.CANDIDATE, Stage.REJECTED),
    Stage.CANDIDATE: (Stage.PRODUCTION, Stage.REJECTED),
    Stage.PRODUCTION: (Stage.ARCHIVED,),
    Stage.ARCHIVED: (Stage.PRODUCTION, Stage.REJECTED),
    Stage.REJECTED: (),
}
"""Stage → the stages that may follow it."""

PROMOTION_ORDER = (Stage.NONE, Stage.STAGING, Stage.CANDIDATE, Stage.PRODUCTION)
"""The order in which promotion passes through the stages; each transition has a gate."""


def check_transition(current: Stage, target: Stage, subject: str = "The version", *, hint: str = "") -> None:
    """Raise IllegalTransition unless `current` → `target` is legal."""
    if target not in LEGAL_TRANSITIONS[current]:
        raise illegal_transition(current, target, subject, hint=hint)


def illegal_transition(current: Stage, target: Stage, subject: str, *, hint: str = "") -> IllegalTransition:
    """Return the error for an illegal transition; its message lists the legal ones."""
    legal = LEGAL_TRANSITIONS[current]
    allowed = f"legal next stages: {', '.join(legal)}" if legal else "this stage is final"
    return IllegalTransition(
        f"{subject} is in stage {current} and cannot move to {target} this way; {allowed}."
        f"{f' {hint}' if hint else ''}",
        **{"from": current.value, "to": target.value, "legal": ",".join(legal)},
    )


def promotion_path(current: Stage, target: Stage | None, subject: str = "The version") -> tuple[Stage, ...]:
    """Return the stages to pass through, in order, to reach `target` (None: the next stage).

    Raises IllegalTransition when promotion does not lead from `current` to `target`. An ARCHIVED version
    returns to PRODUCTION by rollback, never by promotion.
    """
    if current not in PROMOTION_ORDER or current is Stage.PRODUCTION:
        hint = "An archived version serves again by RollbackModel." if current is Stage.ARCHIVED else ""
        raise illegal_transition(current, target or Stage.PRODUCTION, subject, hint=hint)
    position = PROMOTION_ORDER.index(current)
    if target is None:
        return (PROMOTION_ORDER[position + 1],)
    if target not in PROMOTION_ORDER or PROMOTION_ORDER.index(target) <= position:
        raise illegal_transition(current, target, subject)
    return PROMOTION_ORDER[position + 1 : PROMOTION_ORDER.index(target) + 1]
