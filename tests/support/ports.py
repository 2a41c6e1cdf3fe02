"""Free ports."""

from __future__ import annotations

from flywheel_local.ports import free


def free_port() -> int:
    """A loopback port that is not in use."""
    return free(["port"])["port"]
