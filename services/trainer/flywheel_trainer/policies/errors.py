"""Errors of retraining policies."""

from __future__ import annotations

from typing import Self

from flywheel_common.errors import InvalidArgument, NotFound


class UnknownPolicy(NotFound):
    """The model has no retraining policy."""

    reason = "UNKNOWN_POLICY"
    remedy = "Set one with SetRetrainingPolicy."

    @classmethod
    def of(cls, name: object) -> Self:
        return cls(f"Policy {str(name)!r} does not exist: set it first.", policy=name)


class InvalidPolicy(InvalidArgument):
    """A field of the policy is missing or out of range; `field` is in the metadata."""

    reason = "INVALID_POLICY"
    remedy = "Correct the field that the message names."
