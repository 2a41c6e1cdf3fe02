"""The HTML page of `flywheel monitor report`."""

from __future__ import annotations

import itertools
import re
from html.parser import HTMLParser

from flywheel.monitor_report import ReportContent, report_page
from flywheel_protos.monitor.v1 import distribution_pb2, explanation_pb2, monitor_pb2
from flywheel_protos.monitor.v1.performance_estimate_pb2 import PerformanceEstimate

VERSION = "projects/p/models/late/versions/3"
VOID = {"meta", "br"}


class Page(HTMLParser):
    """Checks that every element is closed, and collects the elements, the text and the titles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(html)
        assert [] == self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert tag == self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def window(day: int, psi: float, auc: float | None = None) -> monitor_pb2.DriftReport:
    report = monitor_pb2.DriftReport(
        model_version=VERSION,
        predictions=100 + day,
        features=[
            monitor_pb2.FeatureDrift(
                feature="v__<x>",
                psi_corrected=psi,
                verdict=monitor_pb2.DRIFT_VERDICT_DRIFT,
                reason="PSI & more",
            )
        ],
        score_mean=0.25 * day,
        verdict=monitor_pb2.DRIFT_VERDICT_DRIFT,
        reason="major drift in <1> of 1",
        causes=["NULL_BURST"],
        auc=auc,
    )
    report.window_start.FromSeconds(day * 86_400)
    report.window_end.FromSeconds((day + 1) * 86_400)
    return report


def content(timeline: int = 3) -> ReportContent:
    numeric = distribution_pb2.Distribution(
        name="v__<x>", edges=[0.5, 1.5], reference=[50, 25, 25], observed=[10, 10, 20], observed_missing=60
    )
    scores = distribution_pb2.Distribution(name="score", edges=[0.5], reference=[0, 0], observed=[30, 70])
    return ReportContent(
        report=window(2, 0.5, 0.75),
        distributions=distribution_pb2.GetDistributionsResponse(features=[numeric], scores=scores),
        performance=monitor_pb2.Performance(predictions=102, labelled=51, coverage=0.5, auc=0.75),
        timeline=[window(day, day / 10, 0.7 if day != 1 else None) for day in range(timeline)],
        alerts=[monitor_pb2.Alert(kind="DATA_DRIFT", state=monitor_pb2.ALERT_STATE_OPEN, reason="<b>")],
        segments={"carrier=<UA>": window(2, 0.25)},
    )


def test_the_page_is_one_document_that_loads_nothing() -> None:
    html = report_page(content())
    page = Page(html)
    assert {"script", "link", "img", "iframe"}.isdisjoint(tag for tag, _ in page.elements)
    assert not re.search(r"https?://|url\(|@import", html)
    assert not any({"src", "href", "onload"} & attributes.keys() for _, attributes in page.elements)


def test_names_and_reasons_are_text_not_markup() -> None:
    text = "".join(Page(report_page(content())).text)
    for expected in ("v__<x>", "major drift in <1> of 1", "PSI & more", "carrier=<UA>", "<b>", "NULL_BURST"):
        assert expected in text
    assert "102" in text
    assert "51 (50.0%)" in text


def test_bars_are_shares_of_all_rows_with_the_missing_ones() -> None:
    html = report_page(content())
    assert "v__&lt;x&gt;" in html
    titles = re.findall(r"<title>([^<]*: (?:reference|observed) [^<]*)</title>", html)
    assert "≤ 0.5: reference 50.00%" in titles
    assert "≤ 0.5: observed 10.00%" in titles
    assert "(0.5, 1.5]: observed 10.00%" in titles
    assert "&gt; 1.5: observed 20.00%" in titles
    assert "missing: observed 60.00%" in titles
    assert "moved most: missing 0.0% → 60.0%, ≤ 0.5 50.0% → 10.0%" in "".join(Page(html).text)


def test_segments_show_their_quality() -> None:
    shown = content()
    segment = shown.segments["carrier=<UA>"]
    segment.labelled, segment.auc = 1234, 0.8125
    segment.ClearField("log_loss")
    cells = Page(report_page(shown)).text
    start = cells.index("carrier=<UA>")
    assert ["1,234", "0.8125", "–"] == cells[start + 4 : start + 7]


def test_estimates_stand_beside_the_realised_quality() -> None:
    shown = content()
    estimate = PerformanceEstimate(
        auc=0.8125, accuracy=0.625, log_loss=0.375, warning="worse <than> promised"
    )
    shown.performance.estimate.CopyFrom(estimate)
    cells = Page(report_page(shown)).text
    assert "worse <than> promised" in cells
    rows = dict(itertools.pairwise(cells))
    assert ("0.75", "0.8125", "0.625", "0.375") == tuple(
        rows[name] for name in ("auc", "estimated auc", "estimated accuracy", "estimated log loss")
    )
    assert "estimated auc" not in Page(report_page(content())).text


def test_the_page_says_why_the_window_drifted() -> None:
    shown = content()
    feature = explanation_pb2.FeatureExplanation(
        feature="v__<x>",
        importance=0.75,
        drift=0.5,
        impact=0.375,
        bins=[
            explanation_pb2.MovedBin(up_to=0.5, reference_share=0.5, observed_share=0.25, psi_term=0.17),
            explanation_pb2.MovedBin(above=0.5, up_to=1.5, reference_share=0.25, observed_share=0.25),
            explanation_pb2.MovedBin(above=1.5, reference_share=0.25, observed_share=0.5, psi_term=0.17),
            explanation_pb2.MovedBin(category="<c>"),
        ],
        segments=[
            explanation_pb2.SegmentPart(segment="carrier=<UA>", row_share=0.25, psi_part=0.4),
            explanation_pb2.SegmentPart(row_share=0.75, psi_part=-0.1),
        ],
        null_rate=0.5,
    )
    shown.explanation.features.append(feature)
    text = Page(report_page(shown)).text
    for expected in (
        "v__<x>",
        "0.375",
        "≤ 0.5 50.0% → 25.0% (PSI 0.17)",
        "(0.5, 1.5] 25.0% → 25.0% (PSI 0)",
        "> 1.5 25.0% → 50.0% (PSI 0.17)",
        "<c> 0.0% → 0.0% (PSI 0)",
        "missing 0.0% → 50.0%",
        "carrier=<UA>: 25.0% of the rows, PSI +0.4",
        "other rows: 75.0% of the rows, PSI -0.1",
        "The version has no importances of its features: all count alike.",
    ):
        assert expected in text
    shown.explanation.has_importance = True
    assert "all count alike" not in report_page(shown)


def test_a_silenced_feature_is_named() -> None:
    shown = content()
    assert "(silenced)" not in report_page(shown)
    shown.report.features[0].silenced = True
    assert "(silenced)" in report_page(shown)


def test_timelines_leave_gaps_where_a_window_has_no_value() -> None:
    html = report_page(content())
    auc = html[html.index("<h3>AUC</h3>") : html.index("<h3>log-loss</h3>")]
    assert 2 == auc.count("<circle")
    assert "<polyline" not in auc
    scores = html[html.index("<h3>mean score</h3>") : html.index("<h3>AUC</h3>")]
    assert 3 == scores.count("<circle")
    points = [tuple(map(float, p.split(","))) for p in re.findall(r'points="([^"]*)"', scores)[0].split()]
    assert [62.0, 388.0, 714.0] == [x for x, _ in points]
    assert [114.0, 60.0, 6.0] == [y for _, y in points]


def test_a_version_without_windows_or_features_has_a_page() -> None:
    empty = ReportContent(
        monitor_pb2.DriftReport(model_version=VERSION),
        distribution_pb2.GetDistributionsResponse(),
        monitor_pb2.Performance(),
        [],
        [],
        {},
    )
    text = "".join(Page(report_page(empty)).text)
    assert "no window is evaluated yet" in text
