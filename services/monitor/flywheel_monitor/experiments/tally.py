"""What is counted of an experiment: exact sums per arm over subjects, and what is known of each subject.

A subject counts in the arm that served it. One that both arms served, because the shares changed, counts in
neither. A subject's amounts grow with its predictions and outcomes; the sums hold them as they are now.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np

from flywheel_monitor.experiments.experiment import Declaration
from flywheel_monitor.experiments.metric import COST, COUNT, FAILURES, SCALE, MetricSums
from flywheel_monitor.windows.histograms import LATENCY_BINS, latency_bins
from flywheel_monitor.windows.output import LARGEST_SCORE
from flywheel_monitor.windows.support import reached_time, with_recent

BOTH = 2
"""Instead of the number of an arm: both have served the subject."""


@dataclass(frozen=True)
class SubjectEvent:
    """A prediction of a subject (`name` COUNT, with latency, failure and cost), or an outcome of one (its
    name; `value` is added to the subject's amount). `arrived_at`: when the prediction arrived."""

    model: str
    source: str
    release: str
    generation: int
    subject: str
    event_time: int
    arrived_at: datetime
    name: str
    value: float = 1.0
    latency_ms: float = 0.0
    failed: bool = False
    cost: float | None = None

    @property
    def amounts(self) -> tuple[tuple[str, float], ...]:
        if self.name != COUNT:
            return ((self.name, self.value),)
        return (COUNT, 1.0), (FAILURES, float(self.failed)), (COST, self.cost or 0.0)


@dataclass
class Subject:
    """The arm that serves a subject, and its amounts in 1 / SCALE in the order of `Declaration.amounts`."""

    arm: int
    amounts: list[int]


@dataclass
class ArmTally:
    """Sums of one arm. `latencies` is the histogram of its predictions, `sums` has one entry per metric."""

    subjects: int
    predictions: int
    latencies: list[int]
    sums: list[MetricSums]


@dataclass
class Tally:
    """Sums of both arms; `recent` are times of the last predictions (`windows.support`), which cover the time
    from `first_us` to `reached_us`. `unusable` amounts are too large to be added."""

    arms: list[ArmTally]
    crossed: int = 0
    unusable: int = 0
    recent: list[int] = field(default_factory=list)
    first_us: int | None = None
    reached_us: int | None = None

    @classmethod
    def empty(cls, metrics: int) -> Tally:
        return cls([ArmTally(0, 0, [0] * LATENCY_BINS, [MetricSums()] * metrics) for _ in range(2)])

    def to_json(self) -> dict[str, Any]:
        arms = [[a.subjects, a.predictions, a.latencies, [list(s) for s in a.sums]] for a in self.arms]
        return {**vars(self), "arms": arms}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Tally:
        arms = [
            ArmTally(subjects, predictions, list(latencies), [MetricSums(*s) for s in sums])
            for subjects, predictions, latencies, sums in stored["arms"]
        ]
        return cls(**{**stored, "arms": arms, "recent": list(stored["recent"])})


def count(
    declaration: Declaration, tally: Tally, subjects: dict[str, Subject], events: Iterable[SubjectEvent]
) -> set[str]:
    """Add events to the tally and to the subjects, which holds everything known of the subjects of these
    events. Returns the subjects that changed."""
    places = {name: at for at, name in enumerate(declaration.amounts)}
    events = list(events)
    bins = latency_bins(np.array([e.latency_ms for e in events], np.float64)).tolist()
    changed: set[str] = set()
    times: list[int] = []
    for event, latency in zip(events, bins, strict=True):
        number = declaration.arm_of(event.source, event.release, event.generation)
        if number is None:
            continue
        subject = subjects.get(event.subject)
        if event.name == COUNT:
            arm = tally.arms[number]
            arm.predictions += 1
            arm.latencies[latency] += 1
            times.append(event.event_time)
            if subject is None:
                subject = subjects[event.subject] = Subject(number, [0] * len(places))
                changed.add(event.subject)
                arm.subjects += 1
        if subject is None or subject.arm == BOTH:
            continue
        if event.subject not in changed:
            _add(declaration, tally, subject, -1)
            changed.add(event.subject)
        if subject.arm != number:
            tally.arms[subject.arm].subjects -= 1
            tally.crossed += 1
            subject.arm, subject.amounts = BOTH, []
            continue
        for name, value in event.amounts:
            if name in places and abs(value) <= LARGEST_SCORE:
                subject.amounts[places[name]] += round(value * SCALE)
            elif name in places:
                tally.unusable += 1
    for name in changed:
        if subjects[name].arm != BOTH:
            _add(declaration, tally, subjects[name], 1)
    _cover(tally, times)
    return changed


def _add(declaration: Declaration, tally: Tally, subject: Subject, sign: int) -> None:
    """Add what the subject contributes to the sums of its arm, or take it out."""
    amounts = dict(zip(declaration.amounts, subject.amounts, strict=True))
    sums = tally.arms[subject.arm].sums
    for at, metric in enumerate(declaration.metrics):
        sums[at] = sums[at].plus(*metric.of_subject(amounts), sign)


def _cover(tally: Tally, times: Iterable[int]) -> None:
    for time in times:
        tally.recent = with_recent(tally.recent, [time])
        reached = reached_time(tally.recent)
        if reached is not None:
            tally.first_us = reached if tally.first_us is None else tally.first_us
            tally.reached_us = max(reached, tally.reached_us or reached)
