"""Errors of rollouts."""

from __future__ import annotations

from flywheel_common.errors import Aborted, FailedPrecondition, NotFound


class UnknownRollout(NotFound):
    """The model has no rollout with this number."""

    reason = "UNKNOWN_ROLLOUT"
    remedy = "Look the number up with ListRollouts."


class RolloutActive(FailedPrecondition):
    """A rollout of the model is active and decides which release is promoted."""

    reason = "ROLLOUT_ACTIVE"
    remedy = "Wait for the end of the rollout, skip its step, or abort it first."


class RolloutEnded(FailedPrecondition):
    """The rollout has ended and cannot change any more."""

    reason = "ROLLOUT_ENDED"
    remedy = "Start a new rollout."


class NotPaused(FailedPrecondition):
    """The rollout is not paused, so it cannot be resumed."""

    reason = "NOT_PAUSED"
    remedy = "Resume only a rollout in state PAUSED."


class NotLoaded(FailedPrecondition):
    """No live gateway has loaded the challenger, so the rollout stays in PENDING_LOAD."""

    reason = "NOT_LOADED"
    remedy = "Wait until a gateway has loaded the release, or abort the rollout."


class NotAnExperiment(FailedPrecondition):
    """The rollout is no A/B test at its split, so no verdict of an experiment ends it."""

    reason = "NOT_AN_EXPERIMENT"
    remedy = "Start an A/B test with `until_verdict` in its policy, or abort or skip this rollout."


class NotStaged(FailedPrecondition):
    """The version of the challenger has not passed its offline gate, or is archived or rejected."""

    reason = "NOT_STAGED"
    remedy = "Bring the version to STAGING with PromoteModelVersion first."


class AlreadyServing(FailedPrecondition):
    """The release serves already, so there is nothing to roll out."""

    reason = "ALREADY_SERVING"
    remedy = "Start a rollout of another release."


class ConcurrentRolloutStart(Aborted):
    """Another transaction started a rollout of the model first."""

    reason = "ROLLOUT_STARTED"
    remedy = "Read the model's rollouts again and retry."
