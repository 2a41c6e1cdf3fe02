"""Errors of online reads."""

from __future__ import annotations

from flywheel_common.errors import InvalidArgument, NotFound, Unavailable


class OnlineStoreDown(Unavailable):
    """The online store (Redis) does not answer."""

    reason = "ONLINE_STORE_DOWN"
    remedy = "Retry; a write that failed may have been stored, and repeating it is harmless."


class UnknownFeature(NotFound):
    """The view has no feature of this name."""

    reason = "UNKNOWN_FEATURE"
    remedy = "Name one of the features that the message lists."


class NoFeatures(InvalidArgument):
    """The request names neither a feature set nor a feature."""

    reason = "NO_FEATURES"
    remedy = "Set feature_set, or name at least one feature."


def store_down() -> OnlineStoreDown:
    return OnlineStoreDown("The online store does not answer now: try again.")
