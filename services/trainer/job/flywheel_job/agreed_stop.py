"""One answer for all ranks to whether the job was asked to end."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.distributed as dist

EXCHANGE_SECONDS = 0.25
MOST_CALLS = 50
"""Largest number of calls between two exchanges, for loops whose steps become longer."""


class AgreedStop:
    """The ranks exchange their answers about every EXCHANGE_SECONDS, not at each call.

    A collective for each call would cost a tenth of a step of 10 ms. How many calls are left until the next
    exchange is computed from values that all ranks have, so that all of them take part in it. Between two
    exchanges the answer is no.
    """

    def __init__(self, device: torch.device, clock: Callable[[], float] = time.monotonic) -> None:
        self._device, self._clock = device, clock
        self._stopped = False
        self._calls, self._interval = 0, 1
        self._exchanged_at = clock()

    def __call__(self, asked: bool) -> bool:
        """Whether any rank was asked; every rank calls this equally often."""
        if not dist.is_initialized():
            return asked
        self._calls += 1
        if self._stopped or self._calls < self._interval:
            return self._stopped
        now = self._clock()
        seconds = (now - self._exchanged_at) / self._calls
        found = torch.tensor([float(asked), seconds], device=self._device)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        stopped, slowest = found.tolist()
        self._stopped = bool(stopped)
        self._interval = next_interval(self._interval, slowest)
        self._calls, self._exchanged_at = 0, now
        return self._stopped


def next_interval(before: int, seconds: float) -> int:
    """Calls until the next exchange, if a call takes `seconds`; at most twice as many as before."""
    wanted = int(EXCHANGE_SECONDS / seconds) if seconds > 0 else MOST_CALLS
    return max(1, min(wanted, 2 * before, MOST_CALLS))
