"""Prometheus metrics of judged windows and alerts. Bounded: of the newest versions the newest window and its
most drifted features."""

from __future__ import annotations

from dataclasses import asdict

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge

from flywheel_monitor.evaluation.report import Report
from flywheel_monitor.evaluation.window_figures import WindowFigures
from flywheel_monitor.evaluation.window_metrics import WindowMetrics

FEATURES_SHOWN = 50
VERSIONS_SHOWN = 200
"""Versions with the newest windows that have gauges."""
QUALITY_SHOWN = (
    "labelled",
    "average_precision",
    "brier",
    "calibration_error",
    "label_mean",
    "accuracy",
    "macro_f1",
    "rmse",
    "mean_absolute_error",
    "r2",
)
"""Figures of `Quality` besides those with a gauge of their own."""


class EvaluationMetrics:
    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        by_version = ["model_version"]
        self.windows = WindowMetrics(registry)
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
        self._quality = Gauge(
            "flywheel_window_quality",
            "Figures of the newest labelled window, `coverage` the share of predictions with a label",
            [*by_version, "metric"],
            registry=registry,
        )
        self._verdict = Gauge(
            "flywheel_window_verdict",
            "Verdict on the features of the newest window, numbers of DriftVerdict",
            by_version,
            registry=registry,
        )
        self._predictions = Gauge(
            "flywheel_window_predictions", "Predictions of the newest window", by_version, registry=registry
        )
        self._missing = Gauge(
            "flywheel_feature_missing_rate",
            "Share of missing values of a feature",
            [*by_version, "feature"],
            registry=registry,
        )
        self._delay = Gauge(
            "flywheel_label_delay_seconds",
            "Time from prediction to outcome in the newest labelled window",
            [*by_version, "quantile"],
            registry=registry,
        )
        self._estimated = Gauge(
            "flywheel_estimated_performance",
            "What the scores of the newest window promise without labels (CBPE)",
            [*by_version, "metric"],
            registry=registry,
        )
        self._estimate_error = Gauge(
            "flywheel_estimated_performance_error",
            "Realised less estimated figure of the labels of the newest labelled window",
            [*by_version, "metric"],
            registry=registry,
        )
        self._estimate_wrong = Gauge(
            "flywheel_estimated_performance_wrong",
            "1 if the labels of that window are worse than their scores promise, by more than chance",
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
        self._newest: dict[str, int] = {}
        self._newest_labelled: dict[str, int] = {}
        """Version → end of the newest window shown."""

    def report(self, report: Report) -> None:
        """A judged window. The gauges show the newest window of a version; the counter counts every one."""
        self._windows.labels(report.model_version, report.verdict.name).inc()
        self.show(report)

    def show(self, report: Report) -> None:
        """Set the gauges of a version to a window that was judged, unless they show a newer one."""
        version = report.model_version
        if report.span.end_us >= self._newest_labelled.get(version, report.span.end_us):
            for gauge, value in ((self._auc, report.quality.auc), (self._log_loss, report.quality.log_loss)):
                if value is not None:
                    self._newest_labelled[version] = report.span.end_us
                    gauge.labels(version).set(value)
            self._show_quality(report)
            self._show_estimate_error(report)
        if report.span.end_us < self._newest.get(version, report.span.end_us):
            return
        self._newest[version] = report.span.end_us
        if len(self._newest) > VERSIONS_SHOWN:
            self._forget(min(self._newest, key=self._newest.__getitem__))
        if version not in self._newest:
            return
        self._verdict.labels(version).set(report.verdict)
        shown = {d.feature: d for d in report.features[:FEATURES_SHOWN]}
        for feature in self._shown.get(version, set()) - shown.keys():
            self._psi.remove(version, feature)
            self._missing.remove(version, feature)
        for feature, d in shown.items():
            self._psi.labels(version, feature).set(d.psi_corrected)
            self._missing.labels(version, feature).set(d.null_rate)
        self._predictions.labels(version).set(report.predictions)
        self._shown[version] = set(shown)
        self._shift.labels(version).set(report.score.shift)
        if report.estimate is not None:
            for name, value in asdict(report.estimate.expected).items():
                if value is not None:
                    self._estimated.labels(version, name).set(value)

    def _show_quality(self, report: Report) -> None:
        found, version = report.quality, report.model_version
        if found.labelled == 0:
            return
        self._newest_labelled[version] = report.span.end_us
        for name in QUALITY_SHOWN:
            value = getattr(found, name)
            if value is not None:
                self._quality.labels(version, name).set(value)
        if report.predictions:
            self._quality.labels(version, "coverage").set(found.labelled / report.predictions)
        for quantile, seconds in (
            ("0.5", found.label_delay_p50_seconds),
            ("0.9", found.label_delay_p90_seconds),
        ):
            if seconds is not None:
                self._delay.labels(version, quantile).set(seconds)

    def _show_estimate_error(self, report: Report) -> None:
        found = report.estimate
        if found is None or found.labelled is None or report.quality.labelled == 0:
            return
        realised = {
            "auc": report.quality.auc,
            "accuracy": found.realised_accuracy,
            "log_loss": report.quality.log_loss,
        }
        for name, promised in asdict(found.labelled).items():
            value = realised[name]
            if value is not None and promised is not None:
                self._estimate_error.labels(report.model_version, name).set(value - promised)
        self._estimate_wrong.labels(report.model_version).set(1.0 if found.warning else 0.0)

    def alerts(self, counts: dict[tuple[str, str], int]) -> None:
        """The unresolved alerts of all models; models that are absent have none."""
        self._alerts.clear()
        for (model, kind), count in counts.items():
            self._alerts.labels(model, kind).set(count)

    def watermark(self, model: str, micros: int) -> None:
        self._watermark.labels(model).set(micros / 1e6)

    def figures(self, version: str, figures: WindowFigures) -> None:
        """The figures of the newest window of a version that has gauges."""
        if version in self._newest:
            self.windows.show(version, figures)

    def _forget(self, version: str) -> None:
        for gauge in self._of_versions():
            gauge.remove_by_labels({"model_version": version})
        self.windows.forget(version)
        for known in (self._shown, self._newest, self._newest_labelled):
            known.pop(version, None)

    def _of_versions(self) -> tuple[Gauge, ...]:
        return (
            self._psi,
            self._shift,
            self._auc,
            self._log_loss,
            self._delay,
            self._quality,
            self._verdict,
            self._predictions,
            self._missing,
            self._estimated,
            self._estimate_error,
            self._estimate_wrong,
        )

    def stop(self) -> None:
        """Export no gauge: another replica evaluates now, and these values would stay as they are."""
        for gauge in (*self._of_versions(), self._alerts, self._watermark):
            gauge.clear()
        self.windows.clear()
        self._shown.clear()
        self._newest.clear()
        self._newest_labelled.clear()
