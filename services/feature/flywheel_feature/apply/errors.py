"""Errors of applying definitions and of reading their lineage."""

from __future__ import annotations

from flywheel_common.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable


class InvalidDefinition(InvalidArgument):
    """A definition breaks a rule; nothing was applied."""

    reason = "INVALID_DEFINITION"
    remedy = "Correct the fields that the message lists, and apply again."


class UnknownReference(InvalidArgument):
    """A definition or delete_names refers to something that does not exist; nothing was applied."""

    reason = "UNKNOWN_REFERENCE"
    remedy = "Correct the name, or apply the missing definition first or in the same call."


class UnknownDeletion(NotFound):
    """A definition or delete_names refers to something that does not exist; nothing was applied."""

    reason = "UNKNOWN_REFERENCE"
    remedy = "Correct the name, or apply the missing definition first or in the same call."


class InUse(FailedPrecondition):
    """A definition cannot be deleted because views, feature sets or model versions read it."""

    reason = "IN_USE"
    remedy = (
        "Delete its readers first or in the same call, and archive or reject the model versions that use it."
    )


class RegistryDown(Unavailable):
    """The model registry does not answer, so it is not known whether models use what is to be deleted."""

    reason = "REGISTRY_DOWN"
    remedy = "Retry when the model registry answers."


class UnknownName(NotFound):
    """The name is not part of the project's lineage."""

    reason = "UNKNOWN_NAME"
    remedy = "Name an entity, source, view, feature set or model version of this project."
