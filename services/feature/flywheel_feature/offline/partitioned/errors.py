"""Errors about joins in partitions."""

from __future__ import annotations

from flywheel_common.errors import FailedPrecondition


class NoRay(FailedPrecondition):
    """The request asks for Ray, and the service has no Ray cluster."""

    reason = "NO_RAY"
    remedy = "Set `ray_address` in the service's configuration, or leave `compute` out."
