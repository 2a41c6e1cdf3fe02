"""A model version that the monitor watches."""

from __future__ import annotations

from dataclasses import dataclass

from flywheel_monitor.references.reference import QualityReference, Reference, ScoreReference
from flywheel_monitor.windows.layout import Layout
from flywheel_monitor.windows.output import Output
from flywheel_monitor.windows.pieces import Kept, rollup_widths


@dataclass(frozen=True)
class WatchedVersion:
    """A model version with its reference. `id` is its number in the store, `layout` that of its panes."""

    id: int
    name: str
    model_id: int
    model: str
    reference: Reference
    layout: Layout
    first_window: ScoreReference | None = None
    first_labels: tuple[int, ...] = ()
    """Histogram of the labels of the first window judged with labels (`performance.verdicts`)."""
    rolled_up: bool = True
    """Whether hours and days exist for all its panes."""
    minutes_from_us: int = 0
    """Panes that begin before this are deleted, but for hours and days; 0: none is."""

    def kept(self, pane_us: int) -> Kept:
        """The panes that are kept of it."""
        rollups = rollup_widths(pane_us) if self.rolled_up else ()
        return Kept(pane_us, rollups, self.minutes_from_us)

    @property
    def output(self) -> Output:
        return self.layout.output

    @property
    def quality_reference(self) -> QualityReference:
        metrics = self.reference.metrics
        return QualityReference(
            auc=metrics.get("auc"),
            log_loss=metrics.get("log_loss"),
            label_mean=metrics.get("label_mean"),
            accuracy=metrics.get("accuracy"),
            rmse=metrics.get("rmse"),
            labels=self.first_labels,
            average_precision=metrics.get("average_precision"),
            brier=metrics.get("brier"),
            calibration_error=metrics.get("ece"),
            rows=int(metrics.get("rows", 0)),
        )

    @property
    def score_reference(self) -> ScoreReference | None:
        """The moments that the trainer recorded, else those of the first window served. The histogram is
        always that of the first window."""
        metrics = self.reference.metrics
        counts = self.first_window.counts if self.first_window else ()
        classes = self.first_window.classes if self.first_window else ()
        projections = self.first_window.projections if self.first_window else ()
        if "score_mean" in metrics and metrics.get("score_stddev", 0.0) > 0:
            return ScoreReference(
                metrics["score_mean"],
                metrics["score_stddev"],
                int(metrics.get("rows", 0)),
                counts,
                classes,
                projections,
            )
        return self.first_window
