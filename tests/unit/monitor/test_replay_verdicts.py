"""Stored reports against those that a replay computes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flywheel_monitor.evaluation.report import Report, report_on
from flywheel_monitor.models.policy import WEEK_US, MonitorPolicy
from flywheel_monitor.performance.quality import Quality
from flywheel_monitor.references.reference import ScoreReference
from flywheel_monitor.replay.verdicts import report_difference
from flywheel_monitor.windows.span import Span
from tests.unit.monitor.test_season import VERSION, window

SPAN = Span(WEEK_US, WEEK_US + 1)
POLICY = MonitorPolicy(seasonal_weeks=1)
LABELLED = Quality(labelled=900, auc=0.75, log_loss=0.5, label_mean=0.25)
KNOWN = replace(VERSION, first_window=ScoreReference(0.25, 0.1, 500))


def stored(quality: Quality = LABELLED, late: int = 0) -> Report:
    report = report_on(KNOWN, SPAN, window(a=1.0), quality, POLICY, late, earlier=window())
    return Report.from_json(report.to_json())


def difference(report: Report, a: float = 1.0, quality: Quality = LABELLED) -> str:
    return report_difference(report, KNOWN, window(a=a), quality, POLICY, window())


def test_a_report_from_before_a_figure_of_features_existed_does_not_differ() -> None:
    json = stored().to_json()
    removed = [(f.pop("mean_shift_z"), f.pop("psi_epsilon")) for f in json["features"]]
    assert any(z is not None and psi is not None for z, psi in removed)
    assert "" == difference(Report.from_json(json))


def test_an_equal_report_has_no_difference() -> None:
    assert "" == difference(stored())
    assert "" == difference(stored(late=7)), "how many were late is no function of the records"


def test_a_report_that_differs_names_its_parts() -> None:
    assert "features, reason" == difference(stored(), a=1.25)
    assert "predictions" == difference(replace(stored(), predictions=3))
    moved = replace(stored(), score=replace(stored().score, shift=2.0))
    assert "score" == difference(moved)
    assert "quality" == difference(replace(stored(), quality=replace(LABELLED, auc=0.5)))


def test_a_report_from_before_its_labels_equals_one_without_them() -> None:
    assert "" == difference(stored(Quality()))
    fewer = replace(LABELLED, labelled=700)
    assert "" == difference(stored(fewer)), "labels that came after the last judgement"


def test_a_report_from_before_the_first_window_had_no_reference() -> None:
    early = report_on(VERSION, SPAN, window(a=1.0), LABELLED, POLICY, earlier=window())
    assert "" == difference(Report.from_json(early.to_json()))


@pytest.mark.parametrize(
    "missing", ["estimate", "average_precision", "auc_error", "log_loss_error", "brier_error"]
)
def test_a_report_from_before_a_figure_existed_does_not_differ(missing: str) -> None:
    quality = replace(LABELLED, average_precision=0.5, auc_error=0.01, log_loss_error=0.02, brier_error=0.03)
    json = stored(quality).to_json()
    (json if missing == "estimate" else json["quality"]).pop(missing)
    assert "" == difference(Report.from_json(json), quality=quality)
