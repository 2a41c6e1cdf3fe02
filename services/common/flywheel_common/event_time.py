"""The upper bound of event times: now + `max_clock_skew`.

A time beyond the bound comes from a wrong clock. No watermark, window, expiry or bake time may follow it, so
each service refuses it at its RPCs and quarantines it in its consumers. The past has no such bound, because
history is replayed.
"""

from __future__ import annotations

from dataclasses import dataclass

from flywheel_common.arrays import Ints, Mask
from flywheel_common.clock import Clock
from flywheel_common.errors import EventTimeOutOfRange
from flywheel_common.value import from_micros, micros


@dataclass(frozen=True, slots=True)
class EventTimeBound:
    """Decides which event times are accepted. Times are microseconds since 1970 UTC."""

    clock: Clock
    max_clock_skew_seconds: float = 300.0

    def now(self) -> int:
        """The time now."""
        return micros(self.clock.now())

    def latest(self) -> int:
        """The latest accepted event time."""
        return self.now() + int(self.max_clock_skew_seconds * 1_000_000)

    def out_of_range(self, times: Ints) -> Mask:
        """[n] bool: the times that `check` refuses."""
        wrong: Mask = (times > self.latest()) | (times == 0)
        return wrong

    def check(self, time: int, what: str) -> None:
        """Raises EventTimeOutOfRange for a time after the bound, and for 0, which an unset Timestamp has.

        `what` names the field in the message.
        """
        if time == 0:
            raise unset_time(what)
        latest = self.latest()
        if time > latest:
            raise EventTimeOutOfRange(
                f"{what} is {_text(time)}, after the latest accepted time {_text(latest)} (now + "
                f"max_clock_skew of {self.max_clock_skew_seconds:g} s): correct the clock of the sender.",
                field=what,
                latest=_text(latest),
            )


def unset_time(what: str) -> EventTimeOutOfRange:
    """The error for a Timestamp that was sent without a value."""
    return EventTimeOutOfRange(
        f"{what} is 1970-01-01T00:00:00Z, the value of a Timestamp that was never set: send the time of the "
        "event.",
        field=what,
    )


def _text(time: int) -> str:
    """RFC 3339, or the number of microseconds for years that a datetime cannot hold."""
    try:
        return from_micros(time).isoformat().replace("+00:00", "Z")
    except OverflowError:
        return f"{time} µs since 1970"
