"""Comparison of a challenger with the champion.

A shadow predicted the same requests as the champion, so log-losses are paired and their difference has little
variance. A canary served its own subjects, so means are compared.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flywheel_common.arrays import Floats, Ints, Mask
from flywheel_monitor.comparison.bounds import Bounds, paired, welch
from flywheel_monitor.performance.quality import quality, totals_of_rows
from flywheel_monitor.performance.rates import error_rate
from flywheel_monitor.windows.histograms import quantile
from flywheel_monitor.windows.losses import log_loss_terms

LARGEST_SHIFT = 1e6


@dataclass(frozen=True)
class VariantRows:
    """n stored predictions of one variant, in any order. `labels` is NaN where a prediction has none;
    `usable` marks usable scores; `failed` marks predictions that the model should have made and did not."""

    ids: tuple[str, ...]
    event_times: Ints
    scores: Floats
    labels: Floats
    decisions: Mask
    latencies_ms: Floats
    usable: Mask
    failed: Mask

    def scored(self) -> Floats:
        return self.scores[self.usable]

    def has_label(self) -> Mask:
        return self.usable & np.isfinite(self.labels)


@dataclass(frozen=True)
class Variant:
    """Statistics of one variant; see `VariantStatistics` of the API."""

    predictions: int
    labelled: int
    error_rate: float
    latency_p99_ms: float
    score_mean: float
    score_stddev: float
    log_loss: float | None
    auc: float | None
    brier: float | None


@dataclass(frozen=True)
class Comparison:
    """Both variants and their differences; see `CompareVariantsResponse` of the API."""

    champion: Variant
    challenger: Variant
    labelled: int
    log_loss: Bounds
    disagreement_rate: float | None
    score_shift: float


def describe(rows: VariantRows) -> Variant:
    """The statistics of one variant's rows."""
    n = len(rows.event_times)
    scores, labelled = rows.scored(), rows.has_label()
    found = quality(totals_of_rows(rows.scores[labelled], rows.labels[labelled]))
    return Variant(
        predictions=n,
        labelled=found.labelled,
        error_rate=error_rate(int(rows.failed.sum()), n),
        latency_p99_ms=quantile(np.sort(rows.latencies_ms), np.ones(n, np.int64), 0.99),
        score_mean=float(scores.mean()) if len(scores) else 0.0,
        score_stddev=float(scores.std()) if len(scores) else 0.0,
        log_loss=found.log_loss,
        auc=found.auc,
        brier=found.brier,
    )


def compare(champion: VariantRows, challenger: VariantRows, *, is_paired: bool, alpha: float) -> Comparison:
    """Both variants, and the difference of their log-losses (challenger - champion)."""
    a, b = describe(champion), describe(challenger)
    if is_paired:
        at, bt = _pairs(champion.ids, challenger.ids)
        both = champion.usable[at] & challenger.usable[bt]
        at, bt = at[both], bt[both]
        disagreement = float((champion.decisions[at] != challenger.decisions[bt]).mean()) if len(at) else None
        shift = score_shift(champion.scores[at], challenger.scores[bt])
        known = np.isfinite(champion.labels[at])
        at, bt = at[known], bt[known]
        labels = champion.labels[at]
        bounds = paired(
            log_loss_terms(challenger.scores[bt], labels) - log_loss_terms(champion.scores[at], labels), alpha
        )
        return Comparison(a, b, len(at), bounds, disagreement, shift)
    challenger_losses, champion_losses = (
        log_loss_terms(rows.scores[labelled], rows.labels[labelled])
        for rows, labelled in ((rows, rows.has_label()) for rows in (challenger, champion))
    )
    bounds = welch(challenger_losses, champion_losses, alpha)
    shift = score_shift(champion.scored(), challenger.scored())
    return Comparison(a, b, min(a.labelled, b.labelled), bounds, None, shift)


def score_shift(champion: Floats, challenger: Floats) -> float:
    """|difference of means| in champion standard deviations, at most LARGEST_SHIFT (for a champion with
    constant scores). 0 if the challenger has no scores, or the champion fewer than two."""
    if len(champion) < 2 or len(challenger) == 0:
        return 0.0
    difference, spread = abs(float(challenger.mean() - champion.mean())), float(champion.std())
    if difference == 0:
        return 0.0
    return min(difference / spread, LARGEST_SHIFT) if spread else LARGEST_SHIFT


def _pairs(a: tuple[str, ...], b: tuple[str, ...]) -> tuple[Ints, Ints]:
    """Positions in `a` and in `b` of the ids that both contain."""
    where = {prediction_id: i for i, prediction_id in enumerate(a)}
    found = [(where[prediction_id], i) for i, prediction_id in enumerate(b) if prediction_id in where]
    pairs = np.array(found, np.int64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]
