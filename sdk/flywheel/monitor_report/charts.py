"""Charts as SVG elements."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

BAR_HEIGHT = 90
PLOT_WIDTH, PLOT_HEIGHT = 720, 120


def bars(labels: Sequence[str], reference: Sequence[float], observed: Sequence[float]) -> str:
    """Pairs of bars, the reference beside what was observed; the values are shares."""
    highest = max([*reference, *observed, 1e-9])
    step = max(14.0, min(60.0, 560.0 / max(1, len(labels))))
    parts = []
    for i, (label, expected, seen) in enumerate(zip(labels, reference, observed, strict=True)):
        left = i * step
        for offset, share, style in ((0.08, expected, "reference"), (0.5, seen, "observed")):
            height = share / highest * BAR_HEIGHT
            title = escape(f"{label}: {style} {share:.2%}")
            parts.append(
                f'<rect class="{style}" x="{left + offset * step:.1f}" y="{BAR_HEIGHT - height:.1f}" '
                f'width="{0.4 * step:.1f}" height="{height:.1f}"><title>{title}</title></rect>'
            )
    width = step * max(1, len(labels))
    return f'<svg class="bars" width="{width:.0f}" height="{BAR_HEIGHT}" role="img">{"".join(parts)}</svg>'


def line(
    times: Sequence[float], values: Sequence[float | None], titles: Sequence[str], limit: float | None = None
) -> str:
    """A line over time with a dot per value; None leaves a gap. `limit` is a dashed line."""
    known = [value for value in values if value is not None]
    if not known:
        return '<p class="empty">no values</p>'
    marked = [*known, limit] if limit is not None else known
    low, high = min(marked), max(marked)
    spread = high - low or abs(high) or 1.0
    first, span = times[0], max(times[-1] - times[0], 1e-9)

    def place(time: float, value: float) -> tuple[float, float]:
        x = 6 + (time - first) / span * (PLOT_WIDTH - 12)
        return x, 6 + (high - value) / spread * (PLOT_HEIGHT - 12)

    parts: list[str] = []
    run: list[tuple[float, float]] = []
    for time, value, title in zip(times, values, titles, strict=True):
        if value is None:
            parts.append(_path(run))
            run = []
            continue
        x, y = place(time, value)
        run.append((x, y))
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"><title>{escape(title)}</title></circle>')
    parts.append(_path(run))
    if limit is not None:
        _, y = place(first, limit)
        parts.append(f'<line class="limit" x1="0" x2="{PLOT_WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>')
    parts.append(f'<text x="2" y="12">{high:.4g}</text><text x="2" y="{PLOT_HEIGHT - 3}">{low:.4g}</text>')
    return f'<svg class="line" width="{PLOT_WIDTH}" height="{PLOT_HEIGHT}" role="img">{"".join(parts)}</svg>'


def _path(points: Sequence[tuple[float, float]]) -> str:
    if len(points) < 2:
        return ""
    return '<polyline points="' + " ".join(f"{x:.1f},{y:.1f}" for x, y in points) + '"/>'
