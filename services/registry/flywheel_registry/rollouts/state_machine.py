"""The states of a rollout and the transitions between them.

    SHADOW → CANARY(5) → CANARY(20) → CANARY(100) → PROMOTED       (percents from the policy)
    SHADOW → REFUSED     CANARY → ROLLED_BACK     any active → ABORTED     SHADOW | CANARY ⇄ PAUSED

The rules that choose a transition from the evidence are in `decision`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from flywheel_registry.policies.rollout_policy import RolloutPolicy
from flywheel_registry.rollouts.errors import NotPaused, RolloutEnded


class RolloutState(StrEnum):
    """The state of a rollout."""

    SHADOW = "SHADOW"
    CANARY = "CANARY"
    PROMOTED = "PROMOTED"
    REFUSED = "REFUSED"
    ROLLED_BACK = "ROLLED_BACK"
    ABORTED = "ABORTED"
    PAUSED = "PAUSED"


ACTIVE_STATES = frozenset({RolloutState.SHADOW, RolloutState.CANARY, RolloutState.PAUSED})
"""States in which a rollout decides the routing of its model."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a rollout has come.

    `challenger_percent` is the share of subjects that the challenger answers. `step` increases by one with
    every change of state, so that a decision can be matched with the step that it was made for. `resume_to`
    is the state to which a PAUSED rollout returns.
    """

    state: RolloutState = RolloutState.SHADOW
    challenger_percent: float = 0.0
    step: int = 0
    resume_to: RolloutState | None = None

    @property
    def active(self) -> bool:
        """Whether the rollout has not ended."""
        return self.state in ACTIVE_STATES


def advance(progress: Progress, policy: RolloutPolicy) -> Progress:
    """Return the next step: the next canary percent, or PROMOTED after 100. Raises RolloutEnded."""
    if _running_state(progress) is RolloutState.SHADOW:
        return Progress(RolloutState.CANARY, policy.percents[0], progress.step + 1)
    later = [p for p in policy.percents if p > progress.challenger_percent]
    if later:
        return Progress(RolloutState.CANARY, later[0], progress.step + 1)
    return Progress(RolloutState.PROMOTED, 100.0, progress.step + 1)


def withdraw(progress: Progress) -> Progress:
    """Return REFUSED from shadow, ROLLED_BACK from canary. Raises RolloutEnded."""
    in_shadow = _running_state(progress) is RolloutState.SHADOW
    end = RolloutState.REFUSED if in_shadow else RolloutState.ROLLED_BACK
    return Progress(end, 0.0, progress.step + 1)


def abort(progress: Progress) -> Progress:
    """Return ABORTED: the champion answers everything. Raises RolloutEnded."""
    _require_active(progress)
    return Progress(RolloutState.ABORTED, 0.0, progress.step + 1)


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


def _running_state(progress: Progress) -> RolloutState | None:
    """Return SHADOW or CANARY; for PAUSED, the state before the pause. Raises RolloutEnded."""
    _require_active(progress)
    return progress.resume_to if progress.state is RolloutState.PAUSED else progress.state


def _require_active(progress: Progress) -> None:
    if not progress.active:
        raise RolloutEnded(
            f"The rollout ended as {progress.state}: only SHADOW, CANARY and PAUSED rollouts can change; "
            "start a new one.",
            state=progress.state.value,
        )
