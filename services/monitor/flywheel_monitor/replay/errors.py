"""Errors of replays."""

from __future__ import annotations

from flywheel_common.errors import ResourceExhausted


class ReplayRunning(ResourceExhausted):
    """Another replay runs; there is one scratch state."""

    reason = "REPLAY_RUNNING"
    remedy = "Wait until the other replay has ended."
