"""Reasons for which the model does not answer a request.

`CannotScore` and its subclasses do not leave the service: the request is answered by a fallback, and the
reason becomes `degraded_reason` of the answer and `error_reasons` of the prediction log. When no fallback
applies, the caller gets `NoFallback`.
"""

from __future__ import annotations

from flywheel_common.errors import Unavailable


class CannotScore(Unavailable):
    """The model cannot answer this request; a fallback does."""


class FeaturesUnavailable(CannotScore):
    """The feature lookup failed, or its circuit breaker is open."""

    reason = "FEATURES_UNAVAILABLE"
    remedy = "Check that the feature service answers GetOnlineFeatures; answers recover by themselves."


class FeaturesIncomplete(CannotScore):
    """The feature set does not return every input of the model's signature, or one has a wrong type."""

    reason = "FEATURES_INCOMPLETE"
    remedy = "Create a release whose feature set has all inputs of the model's signature."


class FeatureMissing(CannotScore):
    """A feature has no value, and the release's policy for it is FAIL."""

    reason = "FEATURE_MISSING"
    remedy = "Write the feature, or give it another policy in the release's feature_policies."


class FeatureStale(CannotScore):
    """A feature is older than its view's TTL, and the release's policy for it is FAIL."""

    reason = "FEATURE_STALE"
    remedy = "Write the feature more often, or give it another policy in the release's feature_policies."


class InputNotExact(CannotScore):
    """A tensor of the model cannot hold the value of a feature exactly, or has no null for it."""

    reason = "INPUT_NOT_EXACT"
    remedy = (
        "Declare a tensor that holds every value of the feature: FLOAT64 for numbers above the range of "
        "FLOAT32 and integers above 2^24, FLOAT32 or FLOAT64 for features that can be null."
    )


class ModelUnavailable(CannotScore):
    """The model is not loaded, its call failed, or its circuit breaker is open."""

    reason = "MODEL_UNAVAILABLE"
    remedy = "Check Triton and GetServingStatus; answers recover by themselves."


class BudgetExceeded(CannotScore):
    """The deadline of the request, or the time limit of its batch, passed before the model answered."""

    reason = "BUDGET_EXCEEDED"
    remedy = "Set a longer deadline, or find the slow dependency in the timing of other answers."


class BadScore(CannotScore):
    """The model returned a value that is not a finite number."""

    reason = "BAD_SCORE"
    remedy = "Check the model with the features of the logged request."


class NoCachedPrediction(CannotScore):
    """The release is in cost mode, the request fulfils no rule, and there is no batch prediction for it."""

    reason = "NO_CACHED_PREDICTION"
    remedy = "Score the entity with a batch prediction, or extend the rules of the release's cost mode."


class NoFallback(Unavailable):
    """The model cannot answer, and no fallback of the release applies."""

    reason = "NO_FALLBACK"
    remedy = "Retry, or declare a default score in the release's fallback policy."
