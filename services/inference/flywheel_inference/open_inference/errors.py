"""Errors of requests of the Open Inference Protocol."""

from __future__ import annotations

from flywheel_common.errors import InvalidArgument, NotFound


class InvalidTensor(InvalidArgument):
    """A tensor's datatype, shape and data contradict each other, or differ from what the model declares."""

    reason = "INVALID_TENSOR"
    remedy = "Compare the tensor with ModelMetadata; a text is UTF-8 after its length in 4 bytes."


class TensorTooLarge(InvalidArgument):
    """The tensors of the request, or of its answer, have more rows, elements or bytes than allowed."""

    reason = "TENSOR_TOO_LARGE"
    remedy = "Split the request by rows; the limit is in the metadata field `limit`."


class MissingTensor(InvalidArgument):
    """An input tensor of the model is absent."""

    reason = "MISSING_TENSOR"
    remedy = "Send every input that ModelMetadata lists."


class UnknownTensor(InvalidArgument):
    """The request names an input or output that the model does not have."""

    reason = "UNKNOWN_TENSOR"
    remedy = "Use the names that ModelMetadata lists."


class UnsupportedParameter(InvalidArgument):
    """The request uses shared memory, sequences or classification, which the gateway does not offer."""

    reason = "UNSUPPORTED_PARAMETER"
    remedy = "Send the tensors in the request, and read the output tensors."


class VersionNotLoaded(NotFound):
    """The model version is not loaded by this gateway."""

    reason = "VERSION_NOT_LOADED"
    remedy = "Use a version that RepositoryIndex lists as READY: the gateway loads versions of releases."
