"""Gauges of distributions, latencies and segments of the newest window, and their bounds."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from scipy import stats

from flywheel_common.clock import ManualClock
from flywheel_common.ids import SequentialIds
from flywheel_monitor.drift.distribution import Distribution
from flywheel_monitor.drift.score_shift import ScoreShift
from flywheel_monitor.drift.verdict import Verdict
from flywheel_monitor.evaluation.evaluator import Evaluator
from flywheel_monitor.evaluation.metrics import VERSIONS_SHOWN, EvaluationMetrics
from flywheel_monitor.evaluation.report import Report
from flywheel_monitor.evaluation.window_figures import SegmentFigures, WindowFigures
from flywheel_monitor.evaluation.window_metrics import MISSING, OTHER, UNSEEN, shares
from flywheel_monitor.fakes.references import MemoryReferences
from flywheel_monitor.fakes.store import MemoryStore
from flywheel_monitor.models.policy import HOUR_US, MonitorPolicy
from flywheel_monitor.performance.quality import Quality
from flywheel_monitor.references.reference import Reference
from flywheel_monitor.windows.bins import ColumnReference
from flywheel_monitor.windows.span import Span
from flywheel_monitor.windows.watermark import UnreadPartitions
from tests.support.builders.monitor import MODEL, PANE_US, predictions, version_name

VERSION = version_name()
COLUMN = ColumnReference(
    "v__x", True, (300, 400, 300), edges=(-0.5, 0.5), stddev=1.0, minimum=-4.0, maximum=4.0
)


class Monitor:
    """Hours of traffic in two segments, of which the second one has moved."""

    def __init__(self) -> None:
        references = MemoryReferences()
        references.known = {VERSION: Reference((COLUMN,), {})}
        self.store = MemoryStore(references, PANE_US, ManualClock())
        self.registry = CollectorRegistry()
        self.metrics = EvaluationMetrics(self.registry)
        self.evaluator = Evaluator(
            self.store, self.metrics, SequentialIds("a"), unread=self._unread, delay_us=0, poll_seconds=1.0
        )

    async def _unread(self) -> UnreadPartitions:
        return UnreadPartitions()

    async def hour(self, number: int, n: int, segments: tuple[str, str], latency: float = 100.0) -> None:
        normal = stats.norm.ppf((np.arange(n) + 0.5) / n)
        values = np.concatenate([normal, normal + 3])
        async with self.store.transaction() as records:
            await records.set_policy(MODEL, MonitorPolicy(window_us=HOUR_US, min_predictions=100))
            batch = predictions(
                [f"{number}-{i}" for i in range(2 * n)],
                np.repeat([0.25, 0.75], n),
                times=number * HOUR_US + np.arange(2 * n) * (HOUR_US // (2 * n)),
                values=[*values[:-1], None],
                segments=[segments[0]] * n + [segments[1]] * n,
                latencies=np.where(np.arange(2 * n) % 20 == 0, 10 * latency, latency),
                sources=[1] * (2 * n),
            )
            await records.add_predictions(0, [batch])

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"flywheel_{name}", {"model_version": VERSION, **labels})


async def test_gauges_show_distributions_latencies_and_segments() -> None:
    monitor, n = Monitor(), 500
    await monitor.hour(10, n, ("JFK", "LGA"))
    await monitor.hour(11, n, ("JFK", "EWR"))
    await monitor.evaluator.pass_once()
    normal = stats.norm.ppf((np.arange(n) + 0.5) / n)
    values = np.concatenate([normal, normal + 3])[:-1]
    below = Counter(np.searchsorted([-0.5, 0.5], values, side="left").tolist())
    for at, edge in enumerate(("-0.5", "0.5", "+Inf")):
        labels = {"feature": "v__x", "bin": edge}
        assert monitor.value("feature_share", of="window", **labels) == pytest.approx(below[at] / 1000)
        expected = (0.3, 0.4, 0.3)[at]
        assert monitor.value("feature_share", of="reference", **labels) == pytest.approx(expected)
    missing = {"feature": "v__x", "bin": MISSING}
    assert monitor.value("feature_share", of="window", **missing) == pytest.approx(0.001)
    scores = [
        s.value for s in samples(monitor, "flywheel_score_share") if s.labels["of"] == "window" and s.value
    ]
    assert [0.5, 0.5] == scores, "half of the scores are 0.25, half 0.75"
    # Bins are 10 % wide.
    for quantile, seconds in (("0.5", 0.1), ("0.99", 1.0)):
        assert monitor.value("window_latency_seconds", quantile=quantile) == pytest.approx(seconds, rel=0.1)
    assert (0, 0) == (
        monitor.value("window_rate", metric="errors"),
        monitor.value("window_rate", metric="fallbacks"),
    )
    assert (500, 500) == tuple(monitor.value("segment_predictions", segment=s) for s in ("JFK", "LGA"))
    assert (0.25, 0.75) == tuple(monitor.value("segment_score_mean", segment=s) for s in ("JFK", "LGA"))
    assert Verdict.NO_DRIFT == monitor.value("segment_verdict", segment="JFK")
    assert Verdict.NO_DRIFT != monitor.value("segment_verdict", segment="LGA")
    assert (
        (monitor.value("segment_psi", segment="LGA") or 0)
        > 1
        > (monitor.value("segment_psi", segment="JFK") or 0)
    )
    await monitor.hour(12, n, ("JFK", "LGA"), latency=200.0)
    await monitor.evaluator.pass_once()
    assert monitor.value("window_latency_seconds", quantile="0.5") == pytest.approx(0.1, rel=0.1)
    assert monitor.value("segment_predictions", segment="LGA") is None, "no longer in the newest window"
    assert 500 == monitor.value("segment_predictions", segment="EWR")
    monitor.metrics.stop()
    assert not [
        s
        for s in samples(monitor, "flywheel_")
        if "model_version" in s.labels and "_total" not in s.name and "_created" not in s.name
    ]


def samples(monitor: Monitor, prefix: str) -> list[object]:
    return [s for m in monitor.registry.collect() for s in m.samples if s.name.startswith(prefix)]


def test_rare_categories_share_a_bin() -> None:
    names = tuple(f"c{i}" for i in range(1000))
    reference, observed = [1000 - i for i in range(1000)], [1] * 999 + [5000]
    found = Distribution(
        "v__c", tuple(reference), tuple(observed), categories=names, reference_unseen=500, observed_missing=7
    )
    bins = shares(found)
    total = sum(reference) + 500, sum(observed) + 7
    assert 2 * (10 + 3) == len(bins)
    assert bins["c999", "window"] == pytest.approx(5000 / total[1])
    assert bins[OTHER, "reference"] == pytest.approx(
        1 - (sum(reference[:9]) + reference[999] + 500) / total[0]
    )
    assert bins[UNSEEN, "reference"] == pytest.approx(500 / total[0])
    for of in ("window", "reference"):
        assert sum(v for (_, side), v in bins.items() if side == of) == pytest.approx(1.0)


def report(version: str, hour: int) -> Report:
    quality = Quality(500, auc=0.8, log_loss=0.5, brier=0.1)
    return Report(version, Span(hour, hour + 1), 1000, (), ScoreShift(), Verdict.NO_DRIFT, "", "", quality)


def test_only_the_versions_with_the_newest_windows_have_gauges() -> None:
    registry = CollectorRegistry()
    metrics = EvaluationMetrics(registry)
    one = Distribution("score", (1,), (1,))
    segments = {"x" * 500: SegmentFigures(1, 0.5, 0.1, Verdict.DRIFT)}
    for number in range(VERSIONS_SHOWN + 20):
        version = version_name(number + 1)
        metrics.report(report(version, number))
        metrics.figures(version, WindowFigures(one, [replace(one, name="f")], {0.5: 1.0}, 0.0, 0.0, segments))
    gauges = [m for m in registry.collect() if m.type == "gauge"]
    for gauge in gauges:
        versions = {s.labels["model_version"] for s in gauge.samples if "model_version" in s.labels}
        assert versions <= {version_name(n + 1) for n in range(20, VERSIONS_SHOWN + 20)}
        assert all(len(label) <= 100 for s in gauge.samples for label in s.labels.values())
    assert {VERSIONS_SHOWN} <= {len(g.samples) for g in gauges}
    metrics.report(report(version_name(1), 5))
    labels = {"model_version": version_name(1)}
    assert registry.get_sample_value("flywheel_window_auc", labels) is None, "its window is too old"
