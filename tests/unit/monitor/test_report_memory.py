"""Reports kept for further reads: used only while everything that they were computed from is the same."""

from __future__ import annotations

import gc
from dataclasses import replace

import pytest

from flywheel_monitor.evaluation.report import Report, report_on
from flywheel_monitor.evaluation.report_memory import MOST_REPORTS, ReportMemory
from flywheel_monitor.models.policy import MonitorPolicy
from flywheel_monitor.performance.quality import Quality
from flywheel_monitor.references.version import WatchedVersion
from flywheel_monitor.windows.counts import WindowCounts
from flywheel_monitor.windows.span import Span
from tests.unit.monitor.test_replay_verdicts import KNOWN, LABELLED, POLICY, SPAN
from tests.unit.monitor.test_season import VERSION, window

NOW, BEFORE = window(a=1.0), window()


def read(
    memory: ReportMemory,
    version: WatchedVersion = KNOWN,
    *,
    span: Span = SPAN,
    now: WindowCounts = NOW,
    quality: Quality = LABELLED,
    policy: MonitorPolicy = POLICY,
    late: int = 0,
    segment: str = "",
    earlier: WindowCounts | None = BEFORE,
) -> Report:
    return memory.report(version, span, now, quality, policy, late, segment=segment, earlier=earlier)


def test_a_report_is_kept_while_its_window_is_the_same() -> None:
    memory = ReportMemory()
    first = read(memory)
    assert report_on(KNOWN, SPAN, NOW, LABELLED, POLICY, earlier=BEFORE) == first
    assert read(memory) is first


@pytest.mark.parametrize(
    "change",
    [
        {"now": window(a=1.0)},
        {"earlier": window()},
        {"earlier": None},
        {"late": 3},
        {"quality": replace(LABELLED, auc=0.5)},
        {"policy": replace(POLICY, fdr=0.02)},
        {"version": replace(KNOWN, first_window=None)},
        {"segment": "JFK"},
        {"span": Span(SPAN.start_us, SPAN.end_us + 1)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_report_is_computed_again_after_a_change(change: dict[str, object]) -> None:
    memory = ReportMemory()
    first = read(memory)
    assert read(memory, **change) is not first  # type: ignore[arg-type]


def test_a_report_without_an_earlier_window_is_not_one_of_a_lost_window() -> None:
    memory, earlier = ReportMemory(), window()
    first = read(memory, earlier=earlier)
    del earlier
    gc.collect()
    assert read(memory, earlier=None) is not first


def test_the_report_that_was_not_read_for_longest_makes_room() -> None:
    memory = ReportMemory()
    versions = [replace(VERSION, name=f"{VERSION.name}{i}") for i in range(MOST_REPORTS + 1)]
    found = [read(memory, one) for one in versions[:-1]]
    assert read(memory, versions[0]) is found[0]
    read(memory, versions[-1])
    assert read(memory, versions[0]) is found[0]
    assert read(memory, versions[1]) is not found[1]
