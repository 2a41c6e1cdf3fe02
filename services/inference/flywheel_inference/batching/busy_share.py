"""The busy share of slots, as an exponential average over time."""

from __future__ import annotations

from math import exp


class BusyShare:
    """Average of a share that changes in steps: ∫ share(t) · exp(-(now - t)/tau) dt / tau, 0 before the first
    step. Times in seconds on any monotonic clock."""

    __slots__ = ("_average", "_share", "_since", "_tau")

    def __init__(self, tau_seconds: float = 10.0) -> None:
        self._tau = tau_seconds
        self._average = 0.0
        self._share = 0.0
        self._since = 0.0

    def step(self, share: float, now: float) -> None:
        """The share is `share` from now on."""
        self._average, self._since, self._share = self.at(now), now, share

    def at(self, now: float) -> float:
        """The average now."""
        left = exp(-(now - self._since) / self._tau)
        return self._average * left + self._share * (1 - left)
