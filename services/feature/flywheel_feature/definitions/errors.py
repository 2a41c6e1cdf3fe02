"""Errors about definitions, and errors that several packages of the feature service share."""

from __future__ import annotations

from flywheel_common.errors import InvalidArgument, NotFound


class UnknownEntity(NotFound):
    """The project has no entity of this name."""

    reason = "UNKNOWN_ENTITY"
    remedy = "Apply the entity first, or look its name up with ListEntities."


class UnknownSource(NotFound):
    """The project has no source of this name."""

    reason = "UNKNOWN_SOURCE"
    remedy = "Apply the source first, or look its name up with ListSources."


class UnknownView(NotFound):
    """The project has no view, or no view version, of this name."""

    reason = "UNKNOWN_VIEW"
    remedy = "Apply the view first, or look its name up with ListViews."


class UnknownFeatureSet(NotFound):
    """The project has no feature set, or no feature set version, of this name."""

    reason = "UNKNOWN_FEATURE_SET"
    remedy = "Apply the feature set first, or look its name up with ListFeatureSets."


class UnknownField(InvalidArgument):
    """The request names a field that the schema does not have."""

    reason = "UNKNOWN_FIELD"
    remedy = "Use the fields that the message lists, or add the field to the definition."


class InvalidUri(InvalidArgument):
    """An address is not of the form s3://bucket/key, or the service may not read it."""

    reason = "INVALID_URI"
    remedy = "Name an object in a bucket that the service's credentials can read."


class NotABatchView(InvalidArgument):
    """The call needs a batch view, and the named view is a stream view or an on-demand view."""

    reason = "NOT_A_BATCH_VIEW"
    remedy = "Name a batch view, or push to the stream source of the view."


class WrongSpine(InvalidArgument):
    """The spine of a training set is missing, incomplete, or does not fit the feature set."""

    reason = "WRONG_SPINE"
    remedy = "Correct the spine field that the message names."
