"""Compares a stored report with the one computed from replayed counts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

from flywheel_monitor.evaluation.report import Report, report_on
from flywheel_monitor.models.policy import MonitorPolicy
from flywheel_monitor.performance.quality import Quality
from flywheel_monitor.references.version import WatchedVersion
from flywheel_monitor.windows.counts import WindowCounts

_ADDED = (
    "average_precision",
    "auc_error",
    "log_loss_error",
    "label_delay_p50_seconds",
    "label_delay_p90_seconds",
    "brier_error",
    "average_precision_error",
    "calibration_error_error",
    "calibration_error_by_chance",
    "accuracy_error",
    "rmse_error",
    "effective_labels",
)
_ADDED_TO_FEATURES = ("mean_shift_z", "psi_epsilon")
_OF_LABELS = ("quality", "label_shift", "estimate")


def report_difference(
    stored: Report,
    version: WatchedVersion,
    window: WindowCounts,
    quality: Quality,
    policy: MonitorPolicy,
    earlier: WindowCounts | None,
) -> str:
    """The parts of a stored report that are computed otherwise now, "" for none.

    What is no function of the records is taken from the report: how many predictions came late, and that it
    was judged before labels, or before a first window had set the reference of scores and labels.
    """
    if stored.quality.labelled == 0:
        quality = Quality()
    differences = [
        _parts(
            stored,
            report_on(one, stored.span, window, quality, policy, stored.late_predictions, earlier=earlier),
        )
        for one in _versions(version)
    ]
    fewest = min(differences, key=len)
    if stored.quality.labelled != quality.labelled:
        # Labels that came after the last judgement change the panes, not the report.
        fewest = [part for part in fewest if part not in _OF_LABELS]
    if stored.estimate is None:  # It was judged before reports had an estimate.
        fewest = [part for part in fewest if part != "estimate"]
    return ", ".join(fewest)


def _versions(version: WatchedVersion) -> Iterator[WatchedVersion]:
    yield version
    yield replace(version, first_labels=())
    yield replace(version, first_window=None, first_labels=())


def _parts(stored: Report, computed: Report) -> list[str]:
    one, other = (json.loads(json.dumps(report.to_json())) for report in (stored, computed))
    for name in _ADDED:  # Reports from before these figures do not have them.
        if one["quality"][name] is None:
            other["quality"][name] = None
    for mine, theirs in zip(one["features"], other["features"], strict=False):
        for name in _ADDED_TO_FEATURES:
            if mine[name] is None:
                theirs[name] = None
    return [name for name in one if one[name] != other[name]]
