"""Challenger against champion: the evidence that a rollout is decided by.

Shadow answered the same requests, so log-losses are paired and their difference has little variance; a canary answered
its own subjects, so means are compared (Welch 1947). Bounds are one-sided, from Student's t.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from flywheel_common.arrays import Floats, Ints, Mask
from flywheel_monitor import performance
from flywheel_monitor.layout import log_loss_terms

LARGEST_SHIFT = 1e6


@dataclass(frozen=True)
class Bounds:
    """A difference and its one-sided bounds; without enough rows the bounds are infinite and prove nothing."""

    delta: float = 0.0
    lower: float = -math.inf
    upper: float = math.inf


def paired(difference: Floats, alpha: float) -> Bounds:
    """Mean of [n] differences with bounds at level 1 - alpha each."""
    n = len(difference)
    if n < 2:
        return Bounds(float(difference.mean()) if n else 0.0)
    mean = float(difference.mean())
    margin = float(stdtrit(n - 1, 1 - alpha)) * float(difference.std(ddof=1)) / math.sqrt(n)
    return Bounds(mean, mean - margin, mean + margin)


def welch(challenger: Floats, champion: Floats, alpha: float) -> Bounds:
    """Difference of means, unequal variances, Welch-Satterthwaite degrees of freedom."""
    n, m = len(challenger), len(champion)
    delta = (float(challenger.mean()) if n else 0.0) - (float(champion.mean()) if m else 0.0)
    if n < 2 or m < 2:
        return Bounds(delta if n and m else 0.0)
    a, b = float(challenger.var(ddof=1)) / n, float(champion.var(ddof=1)) / m
    if a + b == 0:
        return Bounds(delta, delta, delta)
    freedom = (a + b) ** 2 / (a * a / (n - 1) + b * b / (m - 1))
    margin = float(stdtrit(freedom, 1 - alpha)) * math.sqrt(a + b)
    return Bounds(delta, delta - margin, delta + margin)


@dataclass(frozen=True)
class VariantRows:
    """Stored answers of one variant, n rows in any order. `labels` is NaN where none has come;
    `usable` marks scores that the model gave; `failed` answers that the model should have given and did not."""

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
    """One side of a comparison."""

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
    champion: Variant
    challenger: Variant
    labelled: int
    log_loss: Bounds
    disagreement_rate: float | None
    score_shift: float


def describe(rows: VariantRows) -> Variant:
    """The statistics of one variant's rows."""
    n = len(rows.event_times)
    scores, known = rows.scored(), rows.has_label()
    quality = performance.quality_of_rows(rows.scores[known], rows.labels[known])
    return Variant(
        predictions=n,
        labelled=quality.labelled,
        error_rate=float(rows.failed.mean()) if n else 0.0,
        latency_p99_ms=float(np.percentile(rows.latencies_ms, 99, method="higher")) if n else 0.0,
        score_mean=float(scores.mean()) if len(scores) else 0.0,
        score_stddev=float(scores.std()) if len(scores) else 0.0,
        log_loss=quality.log_loss,
        auc=quality.auc,
        brier=quality.brier,
    )


def compare(champion: VariantRows, challenger: VariantRows, *, is_paired: bool, alpha: float) -> Comparison:
    """Both variants and the difference of their log-losses."""
    a, b = describe(champion), describe(challenger)
    if is_paired:
        at, bt = _pairs(champion.ids, challenger.ids)
        both = champion.usable[at] & challenger.usable[bt]
        at, bt = at[both], bt[both]
        disagreement = float((champion.decisions[at] != challenger.decisions[bt]).mean()) if len(at) else None
        shift = _shift(champion.scores[at], challenger.scores[bt])
        known = np.isfinite(champion.labels[at])
        at, bt = at[known], bt[known]
        labels = champion.labels[at]
        bounds = paired(
            log_loss_terms(challenger.scores[bt], labels) - log_loss_terms(champion.scores[at], labels), alpha
        )
        return Comparison(a, b, len(at), bounds, disagreement, shift)
    ours, theirs = (
        log_loss_terms(r.scores[k], r.labels[k])
        for r, k in ((r, r.has_label()) for r in (challenger, champion))
    )
    shift = _shift(champion.scored(), challenger.scored())
    return Comparison(a, b, min(a.labelled, b.labelled), welch(ours, theirs, alpha), None, shift)


def _pairs(a: tuple[str, ...], b: tuple[str, ...]) -> tuple[Ints, Ints]:
    """Positions, in both, of the ids that both have."""
    where = {prediction_id: i for i, prediction_id in enumerate(a)}
    found = [(where[prediction_id], i) for i, prediction_id in enumerate(b) if prediction_id in where]
    pairs = np.array(found, np.int64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def _shift(champion: Floats, challenger: Floats) -> float:
    """|difference of means| in champion standard deviations, at most 1e6 (a champion that always says the same);
    0 when the challenger has no scores, or the champion too few to have a deviation."""
    if len(champion) < 2 or len(challenger) == 0:
        return 0.0
    difference, spread = abs(float(challenger.mean() - champion.mean())), float(champion.std())
    if difference == 0:
        return 0.0
    return min(difference / spread, LARGEST_SHIFT) if spread else LARGEST_SHIFT
