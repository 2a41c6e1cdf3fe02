"""Errors about training sets, their working files and skew checks."""

from __future__ import annotations

from flywheel_common.errors import AlreadyExists, FailedPrecondition, InvalidArgument, ResourceExhausted


class TrainingSetExists(AlreadyExists):
    """A training set of this name exists; training sets never change."""

    reason = "TRAINING_SET_EXISTS"
    remedy = "Choose another id."


class DuplicateColumn(InvalidArgument):
    """Two columns of the training set would have the same name."""

    reason = "DUPLICATE_COLUMN"
    remedy = "Leave short_feature_names out, or rename the column that the message names."


class WrongArchive(FailedPrecondition):
    """The prediction archive lacks a column that the check needs, or stores one in another type."""

    reason = "WRONG_ARCHIVE"
    remedy = "Give the address of an archive that this platform wrote."


class InvalidArchiveFeatureSet(InvalidArgument):
    """A prediction of the archive names a feature set that does not belong to this project."""

    reason = "WRONG_ARCHIVE"
    remedy = "Give the address of a prediction archive of this project."


class SpillFull(ResourceExhausted):
    """The disk for the working files of joins is full."""

    reason = "SPILL_FULL"
    remedy = "Give `spill_directory` more space, or leave the join to Ray."
