"""When a policy runs by itself: at times of a cron expression, or at the ends of windows."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from zoneinfo import ZoneInfo

from croniter import CroniterError, croniter

from flywheel_trainer.policies.errors import InvalidPolicy
from flywheel_trainer.policies.stored_pipeline import StoredPipeline

DEFAULT_GRACE = timedelta(minutes=5)
DEFAULT_CONTINUOUS_BUDGET = 24
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIELD = re.compile(r"[0-9A-Za-z*/,#-]+")
_RANDOM = re.compile(r"(^|[,/-])[rh]($|[(,/])", re.IGNORECASE)


class Misfire(StrEnum):
    """What happens to times that passed while no trainer could act."""

    LATEST = "LATEST"
    """The newest missed time runs, however late."""
    SKIP = "SKIP"
    """A time that is later than the grace does not run."""
    ALL = "ALL"
    """Every missed time runs, one after the other."""


@dataclass(frozen=True)
class Schedule:
    """A cron expression of five fields in a time zone."""

    cron: str
    time_zone: str = "UTC"
    misfire: Misfire = Misfire.LATEST
    grace: timedelta = DEFAULT_GRACE
    jitter: timedelta = timedelta(0)
    """A run starts up to this much later, by an amount that follows from the policy and the time."""
    pipeline: StoredPipeline | None = None
    """None: the standard pipeline."""

    def first_after(self, after: datetime) -> datetime:
        """The first time after a time, in UTC.

        A local time that a change of the clock leaves out fires at the end of the gap. One that occurs
        twice fires once, unless the hours begin with `*`: those are intervals, as in Vixie cron.
        """
        return next(self._times(after, forward=True))

    def backwards_from(self, latest: datetime) -> Iterator[datetime]:
        """The times up to a time, newest first, in UTC."""
        return self._times(latest + timedelta(seconds=1), forward=False)

    def _times(self, start: datetime, *, forward: bool) -> Iterator[datetime]:
        zone = ZoneInfo(self.time_zone)
        fixed_hours = not self.cron.split()[1].startswith("*")
        found = croniter(self.cron, start.astimezone(zone))
        while True:
            local: datetime = found.get_next(datetime) if forward else found.get_prev(datetime)
            at = local.astimezone(UTC)
            if (at > start) is forward and not (fixed_hours and at.astimezone(zone).fold):
                yield at


@dataclass(frozen=True)
class Continuous:
    """Training after each window of event time, from the champion's weights, on recent rows."""

    window: timedelta
    """Windows are aligned to 1970."""
    delay: timedelta = timedelta(0)
    """Time for which labels of a window may be late: the run starts this much after the window's end."""
    min_rows: int = 0
    """With fewer rows in its training set, a run ends without training."""
    daily_budget: int = DEFAULT_CONTINUOUS_BUDGET
    pipeline: StoredPipeline | None = None
    """None: the standard pipeline."""
    new_rows: int = 0
    """A run trains only on at least this many rows since the last window that was trained on."""


@dataclass(frozen=True)
class Due:
    """A time of a schedule that has come; `missed`: it does not run."""

    time: datetime
    missed: bool = False


def check_schedule(schedule: Schedule) -> None:
    """Raises InvalidPolicy naming the field; a cron that never fires is invalid."""
    fields = schedule.cron.split()
    if len(fields) != 5 or not all(_FIELD.fullmatch(one) for one in fields):
        raise _invalid("cron", f"is {schedule.cron[:100]!r}: use minute hour day month weekday")
    if any(_RANDOM.search(one) for one in fields):
        raise _invalid("cron", f"is {schedule.cron[:100]!r}: random fields are not allowed, use jitter")
    if not _is_zone(schedule.time_zone):
        raise _invalid("time_zone", f"is {schedule.time_zone[:100]!r}, which is no IANA time zone")
    try:
        schedule.first_after(EPOCH)
    except CroniterError as error:
        raise _invalid("cron", f"is {schedule.cron!r}, which never fires or is malformed: {error}") from error
    for name, value, largest in (
        ("misfire_grace", schedule.grace, timedelta(days=30)),
        ("jitter", schedule.jitter, timedelta(days=1)),
    ):
        if not timedelta(0) <= value <= largest:
            raise _invalid(name, f"must be between 0 and {largest.days} days")


def check_continuous(continuous: Continuous) -> None:
    """Raises InvalidPolicy naming the field."""
    year = timedelta(days=366)
    problems = [
        (not timedelta(minutes=1) <= continuous.window <= year, "window", "1 minute to 366 days"),
        (not timedelta(0) <= continuous.delay <= year, "delay", "0 to 366 days"),
        (continuous.daily_budget < 1, "daily_budget", "at least 1"),
        (continuous.pipeline is not None and continuous.min_rows > 0, "min_rows", "0 with a stored pipeline"),
        (continuous.pipeline is not None and continuous.new_rows > 0, "new_rows", "0 with a stored pipeline"),
    ]
    for wrong, field, rule in problems:
        if wrong:
            name = f"policy.continuous.{field}"
            raise InvalidPolicy(f"{name} must be {rule}.", field=name)


def due(schedule: Schedule, after: datetime, now: datetime, salt: str) -> Due | None:
    """The next time to decide, of those after `after` that have come; None: there is none.

    `salt` makes the jitter of one policy differ from that of others.
    """
    if schedule.misfire is Misfire.ALL:
        first = schedule.first_after(after)
        return Due(first) if first + jitter(schedule, first, salt) <= now else None
    for at in schedule.backwards_from(now):
        if at <= after:
            break
        late = now - at - jitter(schedule, at, salt)
        if late >= timedelta(0):
            return Due(at, missed=schedule.misfire is Misfire.SKIP and late > schedule.grace)
    return None


def due_window(continuous: Continuous, after: datetime, now: datetime) -> Due | None:
    """The newest window that ended after `after` and whose delay has passed, or None."""
    end = EPOCH + (now - continuous.delay - EPOCH) // continuous.window * continuous.window
    return Due(end) if end > after else None


def jitter(schedule: Schedule, at: datetime, salt: str) -> timedelta:
    """A share of the schedule's jitter, equal for equal (salt, time)."""
    digest = hashlib.sha256(f"{salt}/{at.isoformat()}".encode()).digest()
    return schedule.jitter * (int.from_bytes(digest[:8]) / 2**64)


@lru_cache(maxsize=64)
def _is_zone(name: str) -> bool:
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        return False
    return True


def _invalid(field: str, rule: str) -> InvalidPolicy:
    name = f"policy.schedule.{field}"
    return InvalidPolicy(f"{name} {rule}.", field=name)
