"""Stored answers, joined with their labels and with the champion's answer to the same request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress

import numpy as np

from flywheel_common.arrays import Floats, Ints, Mask
from flywheel_common.signature import OutputKind
from flywheel_monitor.windows.losses import as_number, loss_terms
from flywheel_monitor.windows.output import Output
from flywheel_monitor.windows.rows import LabelledRows, PairedRows, Rows, usable_scores


@dataclass(frozen=True)
class Answer:
    """One stored prediction. `outputs`: its values, for MULTICLASS; else only the score is stored."""

    event_time: int
    segment: str
    score: float
    source: int
    decision: bool
    outputs: Floats | None = None


@dataclass(frozen=True)
class Known:
    """The label of an answer, and 1 if it is new or -1 if it is taken back. `event_time` of the outcome,
    where its delay counts."""

    value: float
    class_name: str = ""
    weight: int = 1
    event_time: int | None = None


@dataclass(frozen=True)
class Pair:
    """The answers of champion and shadow to one request, with the label if it is known."""

    champion: Answer
    shadow: Answer
    label: Known | None = None


def answers_of(rows: Rows) -> list[Answer]:
    """Each row as an answer."""
    columns = (rows.event_times, rows.scores, rows.sources, rows.decisions)
    times, scores, sources, decisions = (column.tolist() for column in columns)
    found = zip(times, rows.segments, scores, sources, decisions, rows.outputs, strict=True)
    return [Answer(*fields) for fields in found]


def labelled_rows(output: Output, answers: Sequence[tuple[Answer, Known]]) -> LabelledRows:
    """The answers with a usable score whose label fits the output."""
    numbers = np.array([as_number(output, k.value, k.class_name) for _, k in answers], np.float64)
    keep = _usable([a for a, _ in answers]) & np.isfinite(numbers)
    kept = list(compress(answers, keep.tolist()))
    return LabelledRows(
        event_times=np.array([a.event_time for a, _ in kept], np.int64),
        segments=tuple(a.segment for a, _ in kept),
        scores=np.array([a.score for a, _ in kept], np.float64),
        outputs=outputs_of(output, [a for a, _ in kept]),
        labels=numbers[keep],
        weights=np.array([k.weight for _, k in kept], np.int64),
        delays=np.array(
            [np.nan if k.event_time is None else (k.event_time - a.event_time) / 1e6 for a, k in kept],
            np.float64,
        ),
    )


def paired_rows(output: Output, pairs: Sequence[Pair], *, labels_only: bool = False) -> PairedRows:
    """The pairs with two usable scores; `labels_only`: of these, the ones with a label that fits."""
    both = _usable([p.champion for p in pairs]) & _usable([p.shadow for p in pairs])
    kept = list(compress(pairs, both.tolist()))
    numbers = [as_number(output, p.label.value, p.label.class_name) if p.label else np.nan for p in kept]
    labels = np.array(numbers, np.float64)
    known = np.isfinite(labels)
    if labels_only:
        kept, labels = list(compress(kept, known.tolist())), labels[known]
        known = known[known]
    champions, shadows = [p.champion for p in kept], [p.shadow for p in kept]
    a, b = outputs_of(output, champions), outputs_of(output, shadows)
    scores_a, scores_b = _scores(champions), _scores(shadows)
    deltas = np.full(len(kept), np.nan)
    if known.any():
        losses = [
            loss_terms(output, scores[known], outputs[known], labels[known]).loss
            for scores, outputs in ((scores_b, b), (scores_a, a))
        ]
        deltas[known] = losses[0] - losses[1]
    if output.kind is OutputKind.MULTICLASS:
        differ = a.argmax(axis=1) != b.argmax(axis=1)
    else:
        differ = np.array([p.champion.decision != p.shadow.decision for p in kept], np.bool_)
    return PairedRows(
        event_times=np.array([p.shadow.event_time for p in kept], np.int64),
        segments=tuple(p.shadow.segment for p in kept),
        champion_scores=scores_a,
        shadow_scores=scores_b,
        differ=differ,
        deltas=deltas,
        right=_right(
            output, deltas, labels, (a, b), differ, np.array([p.shadow.decision for p in kept], np.bool_)
        ),
        weights=np.array([p.label.weight if p.label and labels_only else 1 for p in kept], np.int64),
        labels_only=labels_only,
    )


def _right(
    output: Output,
    deltas: Floats,
    labels: Floats,
    outputs: tuple[Floats, Floats],
    differ: Mask,
    decided: Mask,
) -> Ints:
    """[n] 1 where only the shadow was right, -1 where only the champion was, else 0 (see `PairedRows`).
    `outputs` of champion and shadow; `decided`: the decision of the shadow."""
    known = np.isfinite(deltas)
    match output.kind:
        case OutputKind.BINARY:
            right = np.where(decided == (labels == 1), 1, -1) * differ
        case OutputKind.MULTICLASS:
            champion, shadow = (values.argmax(axis=1) == labels for values in outputs)
            right = shadow.astype(np.int64) - champion.astype(np.int64)
        case _:
            right = -np.sign(np.where(known, deltas, 0.0)).astype(np.int64)
    return np.where(known, right, 0).astype(np.int64)


def outputs_of(output: Output, answers: Sequence[Answer]) -> Floats:
    """[n, width] values; [n, 1] scores for kinds whose values are not stored."""
    if output.kind is not OutputKind.MULTICLASS:
        return _scores(answers)[:, None]
    nothing = np.full(output.width, np.nan)
    rows = [nothing if a.outputs is None or len(a.outputs) != output.width else a.outputs for a in answers]
    return np.array(rows, np.float64).reshape(len(answers), output.width)


def _scores(answers: Sequence[Answer]) -> Floats:
    return np.array([a.score for a in answers], np.float64)


def _usable(answers: Sequence[Answer]) -> Mask:
    return usable_scores(_scores(answers), np.array([a.source for a in answers], np.int64))
