"""The states of a rollout and the transitions between them.

    PENDING_LOAD → SHADOW → CANARY(5) → CANARY(20) → CANARY(100) → PROMOTED       (percents from the policy)
    PENDING_LOAD → CANARY(50) → PROMOTED | ROLLED_BACK                            (A/B test: by its verdict)
    PENDING_LOAD → PROMOTED                                                       (no champion yet)
    SHADOW → REFUSED     CANARY → ROLLED_BACK     any active → ABORTED, EXPIRED     any active ⇄ PAUSED

The rules that choose a transition from the evidence are in `loading` and `decision`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from flywheel_registry.policies.rollout_policy import RolloutPolicy
from flywheel_registry.rollouts.errors import NotPaused, RolloutEnded


class RolloutState(StrEnum):
    """The state of a rollout."""

    PENDING_LOAD = "PENDING_LOAD"
    SHADOW = "SHADOW"
    CANARY = "CANARY"
    PROMOTED = "PROMOTED"
    REFUSED = "REFUSED"
    ROLLED_BACK = "ROLLED_BACK"
    ABORTED = "ABORTED"
    EXPIRED = "EXPIRED"
    PAUSED = "PAUSED"


ACTIVE_STATES = frozenset(
    {RolloutState.PENDING_LOAD, RolloutState.SHADOW, RolloutState.CANARY, RolloutState.PAUSED}
)
"""States in which a rollout decides the routing of its model."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a rollout has come.

    `challenger_percent` is the share of subjects that the challenger answers. `step` increases by one with
    every change of state, so that a decision can be matched with the step that it was made for. `resume_to`
    is the state to which a PAUSED rollout returns.
    """

    state: RolloutState = RolloutState.PENDING_LOAD
    challenger_percent: float = 0.0
    step: int = 0
    resume_to: RolloutState | None = None

    @property
    def active(self) -> bool:
        """Whether the rollout has not ended."""
        return self.state in ACTIVE_STATES


def advance(progress: Progress, policy: RolloutPolicy, *, has_champion: bool = True) -> Progress:
    """Return the next step: shadow, the next canary percent, or PROMOTED. Raises RolloutEnded.

    An A/B test has no shadow and one split. Without a champion a release that was loaded is promoted:
    the caller makes sure that it was.
    """
    running = running_state(progress)
    if not has_champion:
        return Progress(RolloutState.PROMOTED, 100.0, progress.step + 1)
    if running is RolloutState.PENDING_LOAD and not policy.until_verdict:
        return Progress(RolloutState.SHADOW, 0.0, progress.step + 1)
    later = [p for p in policy.percents if p > progress.challenger_percent]
    if later:
        return Progress(RolloutState.CANARY, later[0], progress.step + 1)
    return Progress(RolloutState.PROMOTED, 100.0, progress.step + 1)


def withdraw(progress: Progress) -> Progress:
    """Return ROLLED_BACK from canary, else REFUSED: no caller got an answer. Raises RolloutEnded."""
    in_canary = running_state(progress) is RolloutState.CANARY
    end = RolloutState.ROLLED_BACK if in_canary else RolloutState.REFUSED
    return Progress(end, 0.0, progress.step + 1)


def abort(progress: Progress) -> Progress:
    """Return ABORTED: the champion answers everything. Raises RolloutEnded."""
    _require_active(progress)
    return Progress(RolloutState.ABORTED, 0.0, progress.step + 1)


def expire(progress: Progress) -> Progress:
    """Return EXPIRED: no decision in time. Raises RolloutEnded."""
    _require_active(progress)
    return Progress(RolloutState.EXPIRED, 0.0, progress.step + 1)


def pause(progress: Progress) -> Progress:
    """Return PAUSED with unchanged routing; a PAUSED rollout does not change. Raises RolloutEnded."""
    _require_active(progress)
    if progress.state is RolloutState.PAUSED:
        return progress
    return replace(progress, state=RolloutState.PAUSED, resume_to=progress.state, step=progress.step + 1)


def resume(progress: Progress) -> Progress:
    """Return to the state before the pause. Raises NotPaused."""
    if progress.state is not RolloutState.PAUSED or progress.resume_to is None:
        raise NotPaused(
            f"The rollout is {progress.state}: only a PAUSED one can be resumed.", state=progress.state.value
        )
    return replace(progress, state=progress.resume_to, resume_to=None, step=progress.step + 1)


def running_state(progress: Progress) -> RolloutState | None:
    """Return the state of an active rollout; for PAUSED, that before the pause. Raises RolloutEnded."""
    _require_active(progress)
    return progress.resume_to if progress.state is RolloutState.PAUSED else progress.state


def _require_active(progress: Progress) -> None:
    if not progress.active:
        raise RolloutEnded(
            f"The rollout ended as {progress.state} and cannot change any more: start a new one.",
            state=progress.state.value,
        )
