"""Errors about models, versions and policies."""

from __future__ import annotations

from flywheel_common.errors import InvalidArgument, NotFound


class UnknownModel(NotFound):
    """The monitor has no policy and no events of this model."""

    reason = "UNKNOWN_MODEL"
    remedy = (
        "Check the name; set a policy with SetMonitorPolicy, or wait until the model has served a prediction."
    )


class InvalidPolicy(InvalidArgument):
    """Fields of the monitor policy are out of range or contradict each other."""

    reason = "INVALID_POLICY"
    remedy = "Correct the fields that the message lists."
