"""One window of one version, judged: inputs, scores and, once labels had their time, labels and quality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from flywheel_monitor import performance
from flywheel_monitor.alerts import Kind
from flywheel_monitor.drift import FeatureDrift, Verdict, judge_features, judge_window
from flywheel_monitor.layout import Window
from flywheel_monitor.performance import Quality
from flywheel_monitor.policy import MonitorPolicy
from flywheel_monitor.references import WatchedVersion
from flywheel_monitor.score_shift import ScoreShift, score_shift
from flywheel_monitor.windows import Span


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

    @property
    def bad_data(self) -> bool:
        """Whether bad data is the likely cause of whatever this window shows."""
        return any(d.verdict == Verdict.DATA_QUALITY for d in self.features)

    def moved(self, *verdicts: Verdict) -> list[FeatureDrift]:
        """Features with one of these verdicts, most drifted first."""
        return [d for d in self.features if d.verdict in verdicts]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Report:
        return cls(
            **{
                **stored,
                "span": Span(**stored["span"]),
                "features": tuple(feature_from_json(f) for f in stored["features"]),
                "score": ScoreShift(**{**stored["score"], "verdict": Verdict(stored["score"]["verdict"])}),
                "verdict": Verdict(stored["verdict"]),
                "quality": Quality(**stored["quality"]),
            }
        )


@dataclass(frozen=True)
class Judged:
    """The verdict of one kind on one window."""

    verdict: Verdict
    span: Span
    reason: str


def feature_from_json(stored: Mapping[str, Any]) -> FeatureDrift:
    return FeatureDrift(**{**stored, "verdict": Verdict(stored["verdict"])})


def report_on(
    version: WatchedVersion, span: Span, window: Window, quality: Quality, policy: MonitorPolicy
) -> Report:
    """The report on a window, from its counts; `quality` may be that of no labels."""
    layout = version.layout
    shifts = {f.name: window.mean_shift(f.name) for f in layout.features}
    features = judge_features(
        layout.features,
        {f.name: window.feature(f) for f in layout.features},
        {name: shift for name, shift in shifts.items() if shift is not None},
        policy,
    )
    if layout.features:
        verdict, reason = judge_window(features, window.predictions, policy)
    else:
        verdict, reason = Verdict.INSUFFICIENT, version.reference.reason or "no reference"
    mean, stddev = window.score_moments()
    score = score_shift(mean, stddev, window.scored, window.scores, version.score_reference, policy)
    expected = version.quality_reference.label_mean
    shift = None if quality.label_mean is None or expected is None else quality.label_mean - expected
    return Report(
        version.name,
        span,
        window.predictions,
        tuple(features),
        score,
        verdict,
        reason,
        version.reference.hash,
        quality,
        shift,
    )


def verdicts(
    report: Report, version: WatchedVersion, policy: MonitorPolicy, kinds: Sequence[Kind]
) -> dict[Kind, tuple[Verdict, str]]:
    """The verdict of each kind of alert on a window. Data drift is judged over the features whose data is good."""
    found: dict[Kind, tuple[Verdict, str]] = {}
    for kind in kinds:
        if kind == Kind.PREDICTION_DRIFT:
            found[kind] = report.score.verdict, report.score.reason
        elif kind == Kind.LABEL_DRIFT:
            found[kind] = performance.judge_labels(report.quality, version.quality_reference, policy)
        elif kind == Kind.CONCEPT_DRIFT:
            found[kind] = performance.judge_concept(report.quality, version.quality_reference, policy)
        elif report.verdict == Verdict.INSUFFICIENT:
            found[kind] = report.verdict, report.reason
        elif kind == Kind.DATA_QUALITY:
            bad = report.bad_data
            found[kind] = (
                (Verdict.DATA_QUALITY, report.reason) if bad else (Verdict.NO_DRIFT, "data is as expected")
            )
        else:
            good = [d for d in report.features if d.verdict != Verdict.DATA_QUALITY]
            found[kind] = (
                judge_window(good, report.predictions, policy)
                if good
                else (Verdict.INSUFFICIENT, report.reason)
            )
    return found
