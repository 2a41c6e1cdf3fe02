"""Errors of computing the answers of a model."""

from __future__ import annotations

from flywheel_common.errors import FailedPrecondition


class WrongShape(FailedPrecondition):
    """The model's output has another shape or type than its signature declares."""

    reason = "WRONG_SHAPE"
    remedy = "Register a version whose signature describes the output tensor of the ONNX graph."
