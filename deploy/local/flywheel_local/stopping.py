"""Stop signals of the launcher: the first one raises Stopped, but never while a process is being started."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_AGAIN_SECONDS = 0.01


class Stopped(BaseException):
    """Raised on SIGTERM, SIGINT or SIGHUP."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


class _Postponed:
    depth = 0
    """Number of `undisturbed` blocks that the main thread is in."""
    stop: Stopped | None = None
    """What the end of the outermost block raises."""


@contextmanager
def stoppable() -> Iterator[None]:
    """Raises Stopped on the first stop signal and ignores further ones, so that they do not interrupt the
    clean-up."""

    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if _in_finalizer(frame):
            # Python drops an exception that leaves __del__.
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)
            return
        for each in _SIGNALS:
            # Not SIG_IGN, which a process that is being started would inherit.
            signal.signal(each, _nothing)
        if not _Postponed.depth:
            raise Stopped(received[0])
        _Postponed.stop = Stopped(received[0])

    before = {number: signal.signal(number, stop) for number in (*_SIGNALS, signal.SIGALRM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _in_finalizer(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False


def _nothing(_number: int, _frame: FrameType | None) -> None:
    pass


@contextmanager
def undisturbed() -> Iterator[None]:
    """Postpones Stopped to the end of the block: what is started in it is known to the clean-up. Other
    threads are never disturbed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _Postponed.depth += 1
    try:
        yield
    finally:
        _Postponed.depth -= 1
        if not _Postponed.depth and _Postponed.stop is not None:
            stop, _Postponed.stop = _Postponed.stop, None
            raise stop
