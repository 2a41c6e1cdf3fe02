"""Prometheus metrics of judged windows and alerts. Bounded: per version the newest window and its most
drifted features."""

from __future__ import annotations

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge

from flywheel_monitor.evaluation.report import Report

FEATURES_SHOWN = 50


class EvaluationMetrics:
    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        by_version = ["model_version"]
        self._psi = Gauge(
            "flywheel_feature_psi",
            "Bias-corrected PSI of a feature",
            [*by_version, "feature"],
            registry=registry,
        )
        self._shift = Gauge(
            "flywheel_score_shift",
            "Mean score shift, reference standard deviations",
            by_version,
            registry=registry,
        )
        self._auc = Gauge(
            "flywheel_window_auc", "AUC of the newest labelled window", by_version, registry=registry
        )
        self._log_loss = Gauge(
            "flywheel_window_log_loss",
            "Log-loss of the newest labelled window",
            by_version,
            registry=registry,
        )
        self._windows = Counter(
            "flywheel_windows_judged", "Windows judged", [*by_version, "verdict"], registry=registry
        )
        self._alerts = Gauge(
            "flywheel_alerts_open", "Unresolved alerts", ["model", "kind"], registry=registry
        )
        self._watermark = Gauge(
            "flywheel_watermark_seconds", "Reached event time, Unix seconds", ["model"], registry=registry
        )
        self._shown: dict[str, set[str]] = {}

    def report(self, report: Report) -> None:
        """The newest report on a version."""
        version = report.model_version
        shown = {d.feature: d.psi_corrected for d in report.features[:FEATURES_SHOWN]}
        for feature in self._shown.get(version, set()) - shown.keys():
            self._psi.remove(version, feature)
        for feature, value in shown.items():
            self._psi.labels(version, feature).set(value)
        self._shown[version] = set(shown)
        self._shift.labels(version).set(report.score.shift)
        if report.quality.auc is not None:
            self._auc.labels(version).set(report.quality.auc)
        if report.quality.log_loss is not None:
            self._log_loss.labels(version).set(report.quality.log_loss)
        self._windows.labels(version, report.verdict.name).inc()

    def alerts(self, counts: dict[tuple[str, str], int]) -> None:
        """The unresolved alerts of all models; models that are absent have none."""
        self._alerts.clear()
        for (model, kind), count in counts.items():
            self._alerts.labels(model, kind).set(count)

    def watermark(self, model: str, micros: int) -> None:
        self._watermark.labels(model).set(micros / 1e6)
