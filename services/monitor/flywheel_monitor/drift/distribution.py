"""Histograms of features and scores beside their reference, as people look at them: the bins of the PSI."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flywheel_common.arrays import Ints
from flywheel_monitor.drift import psi
from flywheel_monitor.windows.bins import FeatureBins, Special, missing
from flywheel_monitor.windows.output import Output


@dataclass(frozen=True)
class Distribution:
    """See `Distribution` of the API."""

    name: str
    reference: tuple[int, ...]
    observed: tuple[int, ...]
    edges: tuple[float, ...] = ()
    categories: tuple[str, ...] = ()
    reference_missing: int = 0
    observed_missing: int = 0
    reference_unseen: int = 0
    observed_unseen: int = 0
    vector: str = ""


def of_feature(bins: FeatureBins, counts: Ints) -> Distribution:
    """The counts [size] of a window over the bins of a feature's PSI."""
    reference = bins.reference_counts
    return Distribution(
        name=bins.name,
        reference=tuple(psi.coarse(bins, reference).tolist()),
        observed=tuple(psi.coarse(bins, counts).tolist()),
        edges=coarse_edges(bins) if bins.numeric else (),
        categories=() if bins.numeric else bins.reference.categories,
        reference_missing=missing(bins, reference),
        observed_missing=missing(bins, counts),
        reference_unseen=int(reference[bins.regular + Special.UNSEEN]),
        observed_unseen=int(counts[bins.regular + Special.UNSEEN]),
        vector=bins.reference.vector,
    )


def of_scores(output: Output, counts: Ints, reference: Sequence[int]) -> Distribution:
    """The histogram [Output.bins] of the scores over the deciles of the reference, else over its own."""
    known = np.asarray(reference, np.int64) if len(reference) == len(counts) else np.zeros_like(counts)
    groups = psi.decile_groups(known if known.any() else counts)
    return Distribution(
        name="score",
        reference=tuple(psi.summed(known, groups).tolist()),
        observed=tuple(psi.summed(counts, groups).tolist()),
        edges=tuple(output.edges()[np.flatnonzero(np.diff(groups))].tolist()),
    )


def coarse_edges(bins: FeatureBins) -> tuple[float, ...]:
    """The edges between the bins of `psi.coarse`."""
    groups = psi.decile_groups(bins.reference_counts[: bins.regular])
    changes = np.flatnonzero(np.diff(groups))
    if not len(changes):
        return bins.reference.minimum, bins.reference.maximum
    return tuple(np.asarray(bins.reference.edges, np.float64)[changes].tolist())
