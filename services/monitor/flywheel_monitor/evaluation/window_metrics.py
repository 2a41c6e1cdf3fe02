"""Prometheus gauges of the newest window of each version: distributions, latencies and segments. Bounded: of
a version a few features, segments and bins, of a name a few characters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from prometheus_client import REGISTRY, CollectorRegistry, Gauge

from flywheel_monitor.drift.distribution import Distribution
from flywheel_monitor.evaluation.window_figures import SegmentFigures, WindowFigures

CATEGORIES_SHOWN = 10
"""Categories with the largest shares that are bins of their own."""
NAME_CHARACTERS = 100
OTHER, MISSING, UNSEEN = "(other)", "(missing)", "(unseen)"
_Values = Mapping[tuple[str, ...], float]


class VersionGauge:
    """A gauge with a series per version and further labels, which are replaced together."""

    def __init__(self, name: str, text: str, labels: Sequence[str], registry: CollectorRegistry) -> None:
        self._gauge = Gauge(name, text, ["model_version", *labels], registry=registry)
        self._shown: dict[str, set[tuple[str, ...]]] = {}

    def show(self, version: str, values: _Values) -> None:
        """Replace the series of a version, by further labels."""
        for labels in self._shown.get(version, set()) - values.keys():
            self._gauge.remove(version, *labels)
        for labels, value in values.items():
            self._gauge.labels(version, *labels).set(value)
        self._shown[version] = set(values)

    def forget(self, version: str) -> None:
        self.show(version, {})
        self._shown.pop(version, None)

    def clear(self) -> None:
        self._gauge.clear()
        self._shown.clear()


class WindowMetrics:
    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        def gauge(name: str, text: str, *labels: str) -> VersionGauge:
            return VersionGauge(f"flywheel_{name}", text, labels, registry)

        share = "Share of the values of {} in a bin, `of` the window and the reference"
        self._features = gauge("feature_share", share.format("a feature"), "feature", "bin", "of")
        self._scores = gauge("score_share", share.format("the scores"), "bin", "of")
        self._latency = gauge("window_latency_seconds", "Latency of the newest window", "quantile")
        self._rates = gauge("window_rate", "Errors and fallbacks over predictions", "metric")
        self._segment_predictions = gauge("segment_predictions", "Predictions of a segment", "segment")
        self._segment_score = gauge("segment_score_mean", "Mean score of a segment", "segment")
        self._segment_psi = gauge(
            "segment_psi", "Largest bias-corrected PSI of a feature in a segment", "segment"
        )
        self._segment_verdict = gauge(
            "segment_verdict", "Verdict on the features of a segment, numbers of DriftVerdict", "segment"
        )

    def show(self, version: str, figures: WindowFigures) -> None:
        """Set all gauges of a version to its newest window."""
        self._features.show(
            version,
            {(_short(d.name), *key): v for d in figures.features for key, v in shares(d).items()},
        )
        self._scores.show(version, shares(figures.scores))
        latencies: _Values = {(f"{q:g}",): ms / 1e3 for q, ms in figures.latencies_ms.items()}
        self._latency.show(version, latencies)
        rates: _Values = {("errors",): figures.error_rate, ("fallbacks",): figures.fallback_rate}
        self._rates.show(version, rates)
        segments: dict[tuple[str, ...], SegmentFigures] = {
            (_short(name),): found for name, found in figures.segments.items()
        }
        self._segment_predictions.show(version, {k: s.predictions for k, s in segments.items()})
        self._segment_score.show(version, {k: s.score_mean for k, s in segments.items()})
        self._segment_psi.show(version, {k: s.psi for k, s in segments.items()})
        self._segment_verdict.show(version, {k: float(s.verdict) for k, s in segments.items()})

    def forget(self, version: str) -> None:
        for gauge in self._gauges():
            gauge.forget(version)

    def clear(self) -> None:
        for gauge in self._gauges():
            gauge.clear()

    def _gauges(self) -> Iterator[VersionGauge]:
        return (gauge for gauge in vars(self).values() if isinstance(gauge, VersionGauge))


def shares(found: Distribution) -> dict[tuple[str, ...], float]:
    """(bin, "window" or "reference") → share. The bin of a number is its upper edge, as of a Prometheus
    histogram, but not added up; rare categories share one."""
    result: dict[tuple[str, ...], float] = {}
    for of, counts, missing, unseen in (
        ("window", found.observed, found.observed_missing, found.observed_unseen),
        ("reference", found.reference, found.reference_missing, found.reference_unseen),
    ):
        total = sum(counts) + missing + unseen
        if not total:
            continue
        for name, count in (*zip(_bins(found), counts, strict=True), (MISSING, missing), (UNSEEN, unseen)):
            result[name, of] = result.get((name, of), 0.0) + count / total
    return result


def _bins(found: Distribution) -> list[str]:
    if not found.categories:
        return [*(f"{edge:.6g}" for edge in found.edges), "+Inf"]
    size = range(len(found.categories))
    order = sorted(size, key=lambda i: -max(found.reference[i], found.observed[i]))
    own = set(order[:CATEGORIES_SHOWN])
    return [_short(name) if i in own else OTHER for i, name in enumerate(found.categories)]


def _short(name: str) -> str:
    return name if len(name) <= NAME_CHARACTERS else f"{name[: NAME_CHARACTERS - 1]}…"
