"""The page: text, tables and charts, without scripts and without anything that is loaded from elsewhere."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from html import escape

from google.protobuf.timestamp_pb2 import Timestamp

from flywheel.monitor_report.charts import bars, line
from flywheel.monitor_report.content import ReportContent
from flywheel.monitor_report.explanation import EQUAL_IMPORTANCE, HEADER, explanation_rows
from flywheel_protos.monitor.v1 import distribution_pb2, explanation_pb2, monitor_pb2

STYLE = """
body { font: 14px/1.5 system-ui, sans-serif; color: #1d2430 }
body { margin: 2rem auto; max-width: 64rem; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem; border-bottom: 1px solid #d8dde6 }
table { border-collapse: collapse; min-width: 50% }
th, td { text-align: left; padding: .25rem .6rem .25rem 0; overflow-wrap: anywhere }
h1, h3, p { overflow-wrap: anywhere }
th { color: #5b6577; font-weight: 600 } tr { border-bottom: 1px solid #eceff4 }
.verdict { border-radius: 4px; padding: 0 .4rem } .INSUFFICIENT { background: #eceff4 }
.NO_DRIFT { background: #d9f2e3 } .WARNING { background: #fdf0c8 }
.DRIFT { background: #fbd9d6 } .DATA_QUALITY { background: #e7ddfb }
rect.reference { fill: #a9b4c6 } rect.observed { fill: #2f6fde }
svg { display: block; margin: .4rem 0; max-width: 100%; height: auto }
rect.plot { fill: #f7f9fc } polyline { fill: none; stroke: #2f6fde; stroke-width: 1.5 }
line.limit { stroke: #c5372c; stroke-dasharray: 5 4 } circle { fill: #2f6fde }
text { font-size: 10px; fill: #5b6577 } .empty, .small { color: #5b6577 } .small { font-size: .9em }
"""
CATEGORIES_SHOWN = 40


def report_page(content: ReportContent) -> str:
    """Return the whole HTML page."""
    report = content.report
    title = f"{report.model_version}: {_time(report.window_start)} to {_time(report.window_end)} UTC"
    sections = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{_verdict(report.verdict)} {escape(report.reason)}</p>",
        _causes(report),
        _section("Why", _why(content.explanation)),
        _section("Quality and latency", _quality(content.performance)),
        _section("Alerts", _alerts(content.alerts)),
        _section("Timelines", _timelines(content.timeline)),
        _section("Scores", _distribution(content.distributions.scores)),
        _section("Features", _features(content)),
        _section("Segments", _segments(content)),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>{''.join(sections)}</body></html>\n"
    )


def _section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>"


def _causes(report: monitor_pb2.DriftReport) -> str:
    if not report.causes:
        return ""
    return f"<p>Causes: {escape(', '.join(report.causes))}</p>"


def _why(found: explanation_pb2.ExplainDriftResponse) -> str:
    """Return the features by importance × drift, with their bins and segments."""
    if not found.features:
        return '<p class="empty">the version has no reference profile</p>'
    note = "" if found.has_importance else f"<p>{EQUAL_IMPORTANCE}</p>"
    cells = ([escape(cell).replace("\n", "<br>") for cell in row] for row in explanation_rows(found))
    return note + _table(HEADER, cells)


def _quality(found: monitor_pb2.Performance) -> str:
    rows = [
        ("predictions", f"{found.predictions:,}"),
        ("labelled", f"{found.labelled:,} ({found.coverage:.1%})"),
        *_figures(found),
        *((f"estimated {name}", value) for name, value in _estimated(found)),
        ("latency p50 / p99", f"{found.latency_p50_ms:.3g} / {found.latency_p99_ms:.3g} ms"),
        ("errors / fallbacks", f"{found.error_rate:.2%} / {found.fallback_rate:.2%}"),
    ]
    warning = f"<p>{escape(found.estimate.warning)}</p>" if found.estimate.warning else ""
    return warning + _table(("", ""), ((escape(name), escape(value)) for name, value in rows))


def _figures(found: monitor_pb2.Performance) -> list[tuple[str, str]]:
    """Return the optional numbers that are set."""
    fields = [f for f in monitor_pb2.Performance.DESCRIPTOR.fields if f.has_presence and not f.message_type]
    return [
        (f.name.replace("_", " "), f"{getattr(found, f.name):.6g}") for f in fields if found.HasField(f.name)
    ]


def _estimated(found: monitor_pb2.Performance) -> list[tuple[str, str]]:
    """Return what the scores promise without labels."""
    if not found.HasField("estimate"):
        return []
    estimate = found.estimate
    optional = [
        (name.replace("_", " "), getattr(estimate, name))
        for name in ("auc", "log_loss")
        if estimate.HasField(name)
    ]
    return [(name, f"{value:.6g}") for name, value in [("accuracy", estimate.accuracy), *optional]]


def _alerts(alerts: Sequence[monitor_pb2.Alert]) -> str:
    if not alerts:
        return '<p class="empty">none</p>'
    rows = (
        (
            escape(alert.kind),
            monitor_pb2.AlertState.Name(alert.state).removeprefix("ALERT_STATE_"),
            f"{_time(alert.window_start)} to {_time(alert.last_window_end)}",
            escape(alert.reason),
        )
        for alert in alerts
    )
    return _table(("kind", "state", "windows", "reason"), rows)


def _timelines(reports: Sequence[monitor_pb2.DriftReport]) -> str:
    if not reports:
        return '<p class="empty">no window is evaluated yet</p>'
    times = [report.window_end.seconds for report in reports]
    charts: dict[str, list[float | None]] = {
        "predictions per window": [r.predictions for r in reports],
        "largest bias-corrected PSI of a feature": [
            max((f.psi_corrected for f in r.features), default=None) for r in reports
        ],
        "mean score": [r.score_mean for r in reports],
        "AUC": [r.auc if r.HasField("auc") else None for r in reports],
        "log-loss": [r.log_loss if r.HasField("log_loss") else None for r in reports],
        "AUC that the scores promise": [
            r.estimate.auc if r.estimate.HasField("auc") else None for r in reports
        ],
    }
    ends = _time(reports[0].window_start), _time(reports[-1].window_start)
    parts = []
    for name, values in charts.items():
        titles = [
            f"{_time(r.window_start)}: {value:.6g}" if value is not None else ""
            for r, value in zip(reports, values, strict=True)
        ]
        parts.append(f"<h3>{name}</h3>{line(times, values, titles, ends)}")
    return "".join(parts)


def _features(content: ReportContent) -> str:
    drift = {feature.feature: feature for feature in content.report.features}
    found: dict[str, list[distribution_pb2.Distribution]] = {}
    for one in content.distributions.features:
        found.setdefault(one.vector or one.name, []).append(one)
    parts = []
    for name in [*drift, *(n for n in found if n not in drift)]:
        silenced = " (silenced)" if name in drift and drift[name].silenced else ""
        verdict = _verdict(drift[name].verdict) + silenced if name in drift else ""
        head = f"<h3>{escape(name)} {verdict}</h3>"
        numbers = _numbers(drift[name]) if name in drift else ""
        charts = [
            (f"<h4>{escape(one.name)}</h4>" if one.vector else "") + _distribution(one)
            for one in found.get(name, ())
        ]
        parts.append(head + numbers + "".join(charts))
    return "".join(parts) or '<p class="empty">the version has no reference profile</p>'


def _numbers(d: monitor_pb2.FeatureDrift) -> str:
    values = [f"PSI {d.psi_corrected:.4g}", f"p {d.adjusted_p_value:.3g}"]
    values += [
        f"{label} {getattr(d, name):.4g}"
        for label, name in (
            ("KS", "ks"),
            ("Cramér's V", "cramers_v"),
            ("mean shift", "mean_shift"),
            ("mean shift of a projection", "projection_shift"),
        )
        if d.HasField(name)
    ]
    values.append(f"missing {d.null_rate:.2%} (reference {d.reference_null_rate:.2%})")
    values.append(f"unseen {d.unseen_rate:.2%} (reference {d.reference_unseen_rate:.2%})")
    return f"<p>{escape(d.reason)}</p><p class='small'>{escape(', '.join(values))}</p>"


def _distribution(found: distribution_pb2.Distribution) -> str:
    reference, observed = list(found.reference), list(found.observed)
    labels = _labels(found)
    extra = [
        ("missing", found.reference_missing, found.observed_missing),
        ("unseen", found.reference_unseen, found.observed_unseen),
    ]
    for label, expected, seen in extra:
        if expected or seen:
            labels.append(label)
            reference.append(expected)
            observed.append(seen)
    shares = [_shares(reference), _shares(observed)]
    if len(labels) > CATEGORIES_SHOWN:
        order = sorted(range(len(labels)), key=lambda i: -max(shares[0][i], shares[1][i]))[:CATEGORIES_SHOWN]
        labels = [labels[i] for i in sorted(order)]
        shares = [[side[i] for i in sorted(order)] for side in shares]
    legend = f"grey: reference, {sum(reference):,} rows; blue: observed, {sum(observed):,} rows"
    moved = _moved(labels, *shares) if sum(reference) and sum(observed) else ""
    return bars(labels, *shares) + f'<p class="small">{legend}{moved}</p>'


def _moved(labels: Sequence[str], reference: Sequence[float], observed: Sequence[float]) -> str:
    """Return the bins that moved most, with their shares."""
    by_change = sorted(zip(labels, reference, observed, strict=True), key=lambda row: -abs(row[2] - row[1]))
    named = [
        f"{label} {before:.1%} → {after:.1%}" for label, before, after in by_change[:3] if before != after
    ]
    return escape(f"; moved most: {', '.join(named)}") if named else ""


def _labels(found: distribution_pb2.Distribution) -> list[str]:
    if found.categories or not found.edges:
        return list(found.categories) or ["all"] * len(found.reference)
    texts = [f"{edge:.4g}" for edge in found.edges]
    inner = [f"({low}, {high}]" for low, high in itertools.pairwise(texts)]
    return [f"≤ {texts[0]}", *inner, f"> {texts[-1]}"]


def _shares(counts: Sequence[int]) -> list[float]:
    total = sum(counts)
    return [count / total if total else 0.0 for count in counts]


def _segments(content: ReportContent) -> str:
    if not content.segments:
        return '<p class="empty">none</p>'
    rows = (
        (
            escape(name),
            f"{report.predictions:,}",
            _verdict(report.verdict),
            f"{report.score_mean:.4g}",
            f"{report.labelled:,}",
            *(f"{getattr(report, n):.4g}" if report.HasField(n) else "–" for n in ("auc", "log_loss")),
            escape(", ".join(f"{f.feature} {f.psi_corrected:.3g}" for f in report.features[:3])),
        )
        for name, report in content.segments.items()
    )
    header = ("segment", "predictions", "verdict", "mean score", "labelled", "AUC", "log-loss", "largest PSI")
    return _table(header, rows)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of cells that are HTML already."""
    head = "".join(f"<th>{name}</th>" for name in header)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _verdict(value: int) -> str:
    name = monitor_pb2.DriftVerdict.Name(value).removeprefix("DRIFT_VERDICT_")
    return f'<span class="verdict {name}">{name}</span>'


def _time(value: Timestamp) -> str:
    return f"{value.ToDatetime():%Y-%m-%d %H:%M:%S}"
