"""The report on one window of one version: features, scores and, once the lateness of labels has passed,
quality."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from flywheel_monitor.drift import design_effect
from flywheel_monitor.drift.causes import Cause
from flywheel_monitor.drift.features import feature_from_json, judge_features, judge_window
from flywheel_monitor.drift.score_shift import ScoreShift, score_shift, score_shift_from_json
from flywheel_monitor.drift.season import confirm_against, confirm_score
from flywheel_monitor.drift.statistics import FeatureDrift
from flywheel_monitor.drift.vectors import columns_of
from flywheel_monitor.drift.verdict import Verdict
from flywheel_monitor.models.policy import MonitorPolicy
from flywheel_monitor.performance.estimate import Estimate, estimate_from_json, estimate_of
from flywheel_monitor.performance.quality import Quality
from flywheel_monitor.references.version import WatchedVersion
from flywheel_monitor.windows.counts import WindowCounts
from flywheel_monitor.windows.span import Span

LATE_SHARE = 0.2
"""Share of late predictions that is a cause of its own."""


@dataclass(frozen=True)
class Report:
    """See `DriftReport` of the API."""

    model_version: str
    span: Span
    predictions: int
    features: tuple[FeatureDrift, ...]
    score: ScoreShift
    verdict: Verdict
    reason: str
    reference_hash: str
    quality: Quality
    label_shift: float | None = None
    late_predictions: int = 0
    estimate: Estimate | None = None

    @property
    def causes(self) -> list[str]:
        """What is wrong with the data of the window: the causes of its features that are not silenced, and
        CLOCK_JUMP if many of its predictions came after it was judged, as from senders with a wrong clock or
        a replay."""
        found = {d.cause for d in self._counted if d.cause}
        if self.late_predictions > LATE_SHARE * self.predictions:
            found.add(Cause.CLOCK_JUMP)
        return sorted(found)

    @property
    def bad_data(self) -> bool:
        """Whether bad data is the likely cause of what this window shows."""
        return any(d.verdict == Verdict.DATA_QUALITY for d in self._counted)

    def features_with(self, *verdicts: Verdict) -> list[FeatureDrift]:
        """Features with one of these verdicts that counts, most drifted first."""
        return [d for d in self._counted if d.verdict in verdicts]

    @property
    def _counted(self) -> list[FeatureDrift]:
        return [d for d in self.features if not d.silenced]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Report:
        return cls(
            **{
                **stored,
                "span": Span(**stored["span"]),
                "features": tuple(feature_from_json(f) for f in stored["features"]),
                "score": score_shift_from_json(stored["score"]),
                "verdict": Verdict(stored["verdict"]),
                "quality": _quality(stored["quality"]),
                "estimate": estimate_from_json(stored.get("estimate")),
            }
        )


def _quality(stored: Mapping[str, Any]) -> Quality:
    return Quality(**{**stored, "labels": tuple(stored.get("labels", ()))})


def report_on(
    version: WatchedVersion,
    span: Span,
    window: WindowCounts,
    quality: Quality,
    policy: MonitorPolicy,
    late: int = 0,
    *,
    earlier: WindowCounts | None = None,
) -> Report:
    """The report on a window from its counts; `quality` is empty while labels are not judged. `late`: how
    many predictions came after the window was judged. `earlier`: the counts that it is also compared with
    (`seasonal_window`)."""
    layout, columns = version.layout, columns_of(window)
    features = judge_features(
        layout.features,
        columns.counts,
        columns.mean_shifts,
        policy,
        columns.blocks,
        columns.moments,
        start_us=span.start_us,
    )
    season = ""
    if earlier is not None:
        features, season = confirm_against(earlier, window, features, policy)
    if layout.features:
        verdict, reason = judge_window(features, window.predictions, policy)
    else:
        verdict, reason = Verdict.INSUFFICIENT, version.reference.reason or "no reference"
    mean, stddev = window.score_moments()
    score = score_shift(
        mean,
        stddev,
        window.scored,
        window.scores,
        version.score_reference,
        policy,
        effect=design_effect.of_mean(*window.score_blocks(), stddev),
        classes=window.predicted,
        projections=window.projection_blocks(),
    )
    if earlier is not None:
        score = confirm_score(earlier, window, score, policy)
    expected = version.quality_reference.label_mean
    shift = None if quality.label_mean is None or expected is None else quality.label_mean - expected
    came_late = f"{late} of {window.predictions} predictions came late" if late else ""
    return Report(
        model_version=version.name,
        span=span,
        predictions=window.predictions,
        features=tuple(features),
        score=score,
        verdict=verdict,
        reason="; ".join(part for part in (reason, season, came_late) if part),
        reference_hash=version.reference.hash,
        quality=quality,
        label_shift=shift,
        late_predictions=late,
        estimate=estimate_of(window, quality),
    )
