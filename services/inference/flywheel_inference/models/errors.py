"""Errors of loading and running models. The gateway reports them as the reason why a release is not ready."""

from __future__ import annotations

from flywheel_common.errors import DataLoss, DeadlineExceeded, FailedPrecondition, NotFound, Unavailable


class NoModelFile(FailedPrecondition):
    """The model version has no file model.onnx."""

    reason = "NO_MODEL_FILE"
    remedy = "Register a version with an artifact named model.onnx."


class UnknownRuleField(FailedPrecondition):
    """A rule of the release's cost mode names a field that its feature set neither has as a key nor reads."""

    reason = "UNKNOWN_RULE_FIELD"
    remedy = "Create a release whose rules name join keys or request fields of its feature set."


class UnknownSegmentKey(FailedPrecondition):
    """A segment key of the release is neither a join key nor a request field of its feature set."""

    reason = "UNKNOWN_SEGMENT_KEY"
    remedy = "Create a release whose segment keys are join keys or request fields of its feature set."


class NoGoldenRows(FailedPrecondition):
    """The model version has no golden rows, so the gateway cannot verify it."""

    reason = "NO_GOLDEN_ROWS"
    remedy = "Register a version with golden rows."


class GoldenRowsMismatch(DataLoss):
    """The loaded model does not reproduce the scores of its golden rows within the tolerance."""

    reason = "GOLDEN_ROWS_MISMATCH"
    remedy = "Compare the exported model with the one that was trained, then register a new version."


class ModelBeingUnloaded(Unavailable):
    """Another gateway on the same model server unloads the model at this moment."""

    reason = "MODEL_BEING_UNLOADED"
    remedy = "None: the gateway loads the model as soon as it is unloaded."


class HoldsUnknown(Unavailable):
    """Redis does not say whether other gateways use a model, so the model stays loaded."""

    reason = "HOLDS_UNKNOWN"
    remedy = "None while Redis starts; else restore Redis. The gateway tries again."


class DigestMismatch(DataLoss):
    """The downloaded bytes of an artifact do not have the registered SHA-256 digest."""

    reason = "DIGEST_MISMATCH"
    remedy = "Register the version again; the stored artifact is damaged."


class WrongSize(DataLoss):
    """An artifact is longer than its registered size."""

    reason = "WRONG_SIZE"
    remedy = "Register the version again; the stored artifact is damaged."


class LoadProcessFailed(Unavailable):
    """The process that sends a model file to Triton ended without a result."""

    reason = "LOAD_PROCESS_FAILED"
    remedy = "None: the gateway loads the model again; when it repeats, give the gateway more memory."


class ModelRefused(FailedPrecondition):
    """Triton refused to load or to run the model."""

    reason = "MODEL_REFUSED"
    remedy = "Compare the model file with the inputs of the version's signature; read Triton's message."


class ModelNotLoaded(NotFound):
    """Triton does not have the model loaded."""

    reason = "MODEL_NOT_LOADED"
    remedy = "Wait: the gateway loads the model again by itself."


class ModelServerDown(Unavailable):
    """Triton does not answer."""

    reason = "MODEL_SERVER_DOWN"
    remedy = "Start Triton, or check its address; the gateway recovers by itself."


class ModelTimeout(DeadlineExceeded):
    """Triton did not answer within the time limit of the call."""

    reason = "MODEL_TIMEOUT"
    remedy = "Give the request more time, or run more instances of the model."
