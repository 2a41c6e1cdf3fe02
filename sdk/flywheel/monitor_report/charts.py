"""Charts as SVG elements."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

BAR_HEIGHT, LABEL_HEIGHT = 90, 74
LABEL_CHARACTERS = 14
PLOT_WIDTH, PLOT_HEIGHT = 720, 120
LEFT, BELOW = 56, 18
"""Room for the numbers beside the plot, and for the times below it."""


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
        text = label if len(label) <= LABEL_CHARACTERS else f"{label[: LABEL_CHARACTERS - 1]}…"
        x, y = left + 0.3 * step, BAR_HEIGHT + 10
        parts.append(f'<text x="{x:.1f}" y="{y}" transform="rotate(40 {x:.1f} {y})">{escape(text)}</text>')
    width, height = step * max(1, len(labels)) + LABEL_HEIGHT, BAR_HEIGHT + LABEL_HEIGHT
    return f'<svg class="bars" {_size(round(width), height)} role="img">{"".join(parts)}</svg>'


def line(
    times: Sequence[float],
    values: Sequence[float | None],
    titles: Sequence[str],
    ends: tuple[str, str] = ("", ""),
    limit: float | None = None,
) -> str:
    """A line over time with a dot per value; None leaves a gap. `ends` name the first and the last time,
    `limit` is a dashed line."""
    known = [value for value in values if value is not None]
    if not known:
        return '<p class="empty">no values</p>'
    marked = [*known, limit] if limit is not None else known
    low, high = min(marked), max(marked)
    spread = high - low or abs(high) or 1.0
    first, span = times[0], max(times[-1] - times[0], 1e-9)

    def place(time: float, value: float) -> tuple[float, float]:
        x = LEFT + 6 + (time - first) / span * (PLOT_WIDTH - LEFT - 12)
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
        parts.append(f'<line class="limit" x1="{LEFT}" x2="{PLOT_WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>')
    numbers = [(12, high)] if high == low else [(12, high), (PLOT_HEIGHT - 3, low)]
    beside, below = LEFT - 6, PLOT_HEIGHT + BELOW - 5
    parts += [f'<text x="{beside}" y="{y}" text-anchor="end">{number:.4g}</text>' for y, number in numbers]
    parts.append(f'<text x="{LEFT}" y="{below}">{escape(ends[0])}</text>')
    parts.append(f'<text x="{PLOT_WIDTH - 2}" y="{below}" text-anchor="end">{escape(ends[1])}</text>')
    back = f'<rect class="plot" x="{LEFT}" width="{PLOT_WIDTH - LEFT}" height="{PLOT_HEIGHT}"/>'
    size = _size(PLOT_WIDTH, PLOT_HEIGHT + BELOW)
    return f'<svg class="line" {size} role="img">{back}{"".join(parts)}</svg>'


def _path(points: Sequence[tuple[float, float]]) -> str:
    if len(points) < 2:
        return ""
    return '<polyline points="' + " ".join(f"{x:.1f},{y:.1f}" for x, y in points) + '"/>'


def _size(width: int, height: int) -> str:
    """The attributes of a chart that shrinks with a narrow page."""
    return f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
