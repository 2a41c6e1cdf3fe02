"""How often verdicts on labels are wrong: windows of an unchanged model that alarm, and worse models that are
missed.

A calibrated BINARY model, whose scores and labels are AR(1) processes, has 1,000 labels per window and the
quality of 500,000 held-out rows. The window is counted in panes and judged as in the monitor."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from scipy.signal import lfilter
from scipy.special import expit, ndtr

from bench import measure
from bench.monitor.calibration import BURN_IN, POLICY
from flywheel_common.arrays import Floats
from flywheel_monitor.drift.verdict import Verdict
from flywheel_monitor.performance.quality import Quality, quality
from flywheel_monitor.performance.verdicts import judge_concept, judge_labels
from flywheel_monitor.references.reference import QualityReference
from flywheel_monitor.windows.layout import Layout
from flywheel_monitor.windows.pane_sums import sum_panes
from flywheel_monitor.windows.panes import PaneAccumulator
from flywheel_monitor.windows.rows import LabelledRows, Rows

WINDOWS = 5_000
WORSE = 300
LABELS = 1_000
HELD_OUT = 500_000
PANES = 60
PANE_US = 60_000_000


def _series(rng: np.random.Generator, n: int, rho: float) -> Floats:
    noise = rng.standard_normal(n + BURN_IN)
    found: Floats = lfilter([math.sqrt(1 - rho * rho)], [1, -rho], noise)[BURN_IN:]
    return found


def window(rng: np.random.Generator, n: int, rho: float, strength: float = 1.0) -> Quality:
    """The quality of n rows; the labels follow scores that are `strength` times as strong."""
    hidden = _series(rng, n, rho)
    scores: Floats = expit(1.5 * hidden - 1)
    labels = (ndtr(_series(rng, n, rho)) < expit(1.5 * strength * hidden - 1)).astype(np.float64)
    layout, times, no = Layout.of(()), np.arange(n) * PANES // n * PANE_US, np.zeros(n, np.bool_)
    ones, zeros, outputs, texts = np.ones(n, np.int64), np.zeros(n), scores[:, None], ("",) * n
    panes = PaneAccumulator(layout, PANE_US)
    panes.add_rows(Rows(times, scores, outputs, no, ones, zeros, zeros, no, texts, {}))
    panes.add_labels(LabelledRows(times, texts, scores, outputs, labels, ones))
    return quality(sum_panes(layout, [(key.start_us, pane) for key, pane in panes.merge({}).items()]))


def run(only: str) -> Iterable[measure.Row]:
    rng = np.random.default_rng(2030)
    held_out = window(rng, HELD_OUT, 0.0)
    reference = QualityReference(
        held_out.auc,
        held_out.log_loss,
        held_out.label_mean,
        average_precision=held_out.average_precision,
        brier=held_out.brier,
        calibration_error=held_out.calibration_error,
        rows=HELD_OUT,
    )
    for rho in (0.0, 0.9):
        if only in f"concept false alarms AR({rho:g})":
            found = [window(rng, LABELS, rho) for _ in range(WINDOWS)]
            for what, judge in (("concept", judge_concept), ("label", judge_labels)):
                alarms = sum(judge(one, reference, POLICY)[0] is Verdict.DRIFT for one in found)
                text = f"windows without {what} drift that alarm, AR({rho:g}), of {WINDOWS}"
                yield measure.row(text, 100 * alarms / WINDOWS, "%", measure.at_most(1.0, of_value=True))
    if only in "concept worse model":
        verdicts = [judge_concept(window(rng, LABELS, 0.0, 0.5), reference, POLICY)[0] for _ in range(WORSE)]
        found_share = 100 * verdicts.count(Verdict.DRIFT) / WORSE
        text = f"windows of {LABELS} labels in which a model half as strong is found"
        yield measure.row(text, found_share, "%", measure.at_least(95.0, of_value=True))
