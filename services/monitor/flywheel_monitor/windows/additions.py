"""What rows of predictions, labels and pairs add to the counts and sums of their panes."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np

from flywheel_common.arrays import Floats, Ints, Mask
from flywheel_common.signature import OutputKind
from flywheel_monitor.windows.delays import delay_bins
from flywheel_monitor.windows.histograms import calibration_bins, latency_bins
from flywheel_monitor.windows.layout import SOURCES, Extra, Layout, Sums
from flywheel_monitor.windows.losses import loss_terms
from flywheel_monitor.windows.numeric_columns import is_number
from flywheel_monitor.windows.output import CLASS_BINS
from flywheel_monitor.windows.projection import PROJECTION_BINS
from flywheel_monitor.windows.rows import LabelledRows, PairedRows, Rows, Source, usable_scores
from flywheel_monitor.windows.vectors import with_projections

Column: TypeAlias = tuple[int | Ints, Mask | None]
"""The index that each row counts at (of several columns [columns, n]), and the rows that count or None for
all."""
Sum: TypeAlias = tuple[int | Ints, Floats]
"""The sum that the values [n] are added to, or sums [sums] and values [sums, n]."""


class Additions(NamedTuple):
    """The columns in which n rows count, each in the rows of its mask, and the sums that they add to."""

    columns: list[Column]
    sums: list[Sum]
    by_row: tuple[Ints, Floats] | None = None
    """Values that go to another sum [n] in each row."""


def of_predictions(layout: Layout, rows: Rows) -> Additions:
    """What new predictions add."""
    usable = usable_scores(rows.scores, rows.sources)
    by_model = rows.sources == Source.MODEL
    columns, sums = _features(layout, rows, by_model)
    scores = np.where(usable, rows.scores, 0.0)
    answered = by_model | (rows.sources == Source.CACHED)
    costed = np.isfinite(rows.costs)
    columns.append((layout.scores + layout.output.score_bins(scores), usable))
    columns.append((layout.latencies + latency_bins(rows.latencies_ms), None))
    columns.append((layout.sources + np.clip(rows.sources, 0, SOURCES - 1), None))
    columns.append((layout.failures, rows.failed))
    for which, mask in (
        (Extra.UNUSABLE, answered & ~usable),
        (Extra.DECISIONS, rows.decisions),
        (Extra.COSTED, costed),
    ):
        columns.append((layout.extras + which, mask))
    columns += _class_columns(layout, rows, usable)
    columns += _projection_columns(layout, rows, usable)
    base = layout.common_sums
    sums.append((base + Sums.SCORE, scores))
    sums.append((base + Sums.SCORE_SQUARED, scores * scores))
    sums.append((base + Sums.COST, np.where(costed, rows.costs, 0.0)))
    return Additions(columns, sums)


def of_labels(layout: Layout, rows: LabelledRows) -> Additions:
    """What labels add to the panes of their predictions."""
    base = layout.common_sums
    terms = loss_terms(layout.output, rows.scores, rows.outputs, rows.labels)
    indices = np.where(terms.positive, layout.positives, layout.negatives) + terms.bins
    sums: list[Sum] = [
        (base + Sums.LABEL, terms.label),
        (base + Sums.LABEL_SQUARED, terms.label**2),
        (base + Sums.LOSS, terms.loss),
        (base + Sums.LOSS_SQUARED, terms.loss**2),
        (base + Sums.BRIER, terms.brier),
        (base + Sums.ABSOLUTE_ERROR, terms.absolute_error),
        (base + Sums.LABELLED_SCORE, rows.scores),
    ]
    columns: list[Column] = [(indices, None)]
    if layout.output.kind is OutputKind.MULTICLASS:
        counted = layout.output.counted_class
        true, predicted = counted(rows.labels.astype(np.int64)), counted(rows.outputs.argmax(axis=1))
        columns.append((layout.confusion + true * layout.output.classes + predicted, None))
    if rows.delays is not None:
        known = np.isfinite(rows.delays)
        columns.append((layout.delays + delay_bins(np.where(known, rows.delays, 0.0)), known))
    by_bin = None
    if layout.output.unit_interval:
        by_bin = base + Sums.CALIBRATION + calibration_bins(terms.bins), rows.scores
    return Additions(columns, sums, by_bin)


def of_pairs(layout: Layout, rows: PairedRows) -> Additions:
    """What requests add that champion and shadow both answered, or only their labels (`labels_only`)."""
    base = layout.common_sums
    labelled = np.isfinite(rows.deltas)
    deltas = np.where(labelled, rows.deltas, 0.0)
    first = layout.extras
    columns: list[Column] = [
        (first + Extra.PAIRS_LABELLED, labelled),
        (layout.right, rows.right < 0),
        (layout.right + 1, rows.right > 0),
    ]
    sums: list[Sum] = [
        (base + Sums.PAIR_LOSS_DELTA, deltas),
        (base + Sums.PAIR_LOSS_DELTA_SQUARED, deltas**2),
    ]
    if not rows.labels_only:
        columns += [(first + Extra.PAIRED, None), (first + Extra.DISAGREED, rows.differ)]
        sums += [
            (base + Sums.PAIR_CHAMPION_SCORE, rows.champion_scores),
            (base + Sums.PAIR_CHAMPION_SQUARED, rows.champion_scores**2),
            (base + Sums.PAIR_SHADOW_SCORE, rows.shadow_scores),
        ]
    return Additions(columns, sums)


def _features(layout: Layout, rows: Rows, by_model: Mask) -> tuple[list[Column], list[Sum]]:
    """The columns and the sums of the features, which count where the model was called."""
    n = len(rows.event_times)
    features = with_projections(rows.features, layout.vector_projections)
    columns: list[Column] = []
    sums: list[Sum] = []
    where = None if by_model.all() else by_model
    numbers = [
        f.name for f in layout.features if f.numeric and f.name in features and is_number(features[f.name][0])
    ]
    if numbers:
        together = layout.numeric_columns
        if len(numbers) < len(together.features):
            together = together.only(numbers)
        x = np.stack([features[f.name][0] for f in together.features]).astype(np.float64, copy=False)
        valid = np.stack([features[f.name][1] for f in together.features])
        bins = together.assign(x, valid)
        bins += np.array([layout.offsets[f.name] for f in together.features])[:, None]
        columns.append((bins, where))
        raw, clipped = together.standardized(x, valid & by_model)
        number = np.array([layout.numeric[f.name] for f in together.features])
        at = layout.moments + 2 * number
        sums += [(number, clipped), (at, raw), (at + 1, raw**2)]
    for one in layout.features:
        if one.name not in numbers:
            values, valid = features.get(one.name, (None, np.zeros(n, np.bool_)))
            columns.append((layout.offsets[one.name] + one.assign(values, valid, n), where))
    return columns, sums


def _class_columns(layout: Layout, rows: Rows, usable: Mask) -> list[Column]:
    """Predicted classes and the bins of the probabilities of a MULTICLASS output."""
    output = layout.output
    if output.kind is not OutputKind.MULTICLASS:
        return []
    p = np.where(usable[:, None], rows.outputs, 0.0)
    columns: list[Column] = [(layout.predicted + output.counted_class(p.argmax(axis=1)), usable)]
    for c in range(min(output.width, output.classes)):
        bins = np.clip(np.floor(p[:, c] * CLASS_BINS), 0, CLASS_BINS - 1).astype(np.int64)
        columns.append((layout.class_bins + c * CLASS_BINS + bins, usable))
    return columns


def _projection_columns(layout: Layout, rows: Rows, usable: Mask) -> list[Column]:
    """The bins of the projections of a VECTOR output."""
    projections = layout.output.projections
    if projections is None:
        return []
    bins = projections.bins(np.where(usable[:, None], rows.outputs, 0.0))
    starts = layout.projections + np.arange(layout.projected) * PROJECTION_BINS
    return [(starts[k] + bins[:, k], usable) for k in range(layout.projected)]
