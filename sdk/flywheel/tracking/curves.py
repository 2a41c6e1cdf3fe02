"""Curves of metrics, drawn in the terminal and as SVG."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

COLORS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2")
TERMINAL_COLORS = ("blue", "red", "green", "magenta", "yellow", "cyan", "white", "bright_red")
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bits of a Braille character by row and column."""
_BRAILLE = 0x2800
_LARGEST = 8e307
_MARGIN_LEFT, _MARGIN, _LINE = 70, 30, 18


@dataclass
class Curve:
    """The points of one metric in the order of their steps; `times` are microseconds since the epoch."""

    key: str
    steps: list[int]
    values: list[float]
    times: list[int]

    @property
    def finite(self) -> list[tuple[int, float]]:
        """The points whose value is finite."""
        return [(s, v) for s, v in zip(self.steps, self.values, strict=True) if math.isfinite(v)]

    @property
    def not_finite(self) -> int:
        """Number of points that no drawing can show."""
        return len(self.values) - len(self.finite)


@dataclass(frozen=True)
class Series:
    """A curve with the label of its legend."""

    label: str
    curve: Curve

    @property
    def legend(self) -> str:
        """The label, and how many values are not finite."""
        gone = self.curve.not_finite
        return f"{self.label} ({gone} not finite)" if gone else self.label


@dataclass(frozen=True)
class _Bounds:
    left: float
    right: float
    low: float
    high: float

    def place(self, step: float, value: float) -> tuple[float, float]:
        """The place in the unit square; the value grows upwards."""
        height = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return (step - self.left) / (self.right - self.left), height


def _bounds(series: Sequence[Series]) -> _Bounds | None:
    points = [point for one in series for point in one.curve.finite]
    if not points:
        return None
    steps, values = zip(*points, strict=True)
    left, right, low, high = min(steps), max(steps), min(values), max(values)
    # The difference of larger floats overflows; they are drawn at the edge.
    low, high = max(low, -_LARGEST), min(high, _LARGEST)
    pad = (high - low) / 20 or abs(high) / 20 or 1.0
    return _Bounds(left, right if right > left else left + 1, low - pad, high + pad)


def terminal_plot(series: Sequence[Series], width: int = 80, height: int = 20) -> Iterator[tuple[str, str]]:
    """Pieces of text and their colours: Braille characters with 2 × 4 dots each, an axis and a legend."""
    bounds = _bounds(series)
    if bounds is None:
        yield "no finite values\n", ""
        yield from _legend(series)
        return
    cells: list[list[tuple[int, int]]] = [[(0, -1)] * width for _ in range(height)]
    for number, one in enumerate(series):
        for x, y in _dots(one.curve.finite, bounds, 2 * width, 4 * height):
            row, column = y // 4, x // 2
            bits, _ = cells[row][column]
            cells[row][column] = bits | _DOTS[y % 4][x % 2], number
    labels = {0: bounds.high, height // 2: (bounds.low + bounds.high) / 2, height - 1: bounds.low}
    for row, line in enumerate(cells):
        yield f"{labels[row]:>11.4g} ┤" if row in labels else " " * 12 + "│", ""
        for bits, number in line:
            color = TERMINAL_COLORS[number % len(TERMINAL_COLORS)] if number >= 0 else ""
            yield chr(_BRAILLE + bits), color
        yield "\n", ""
    right = f"{bounds.right:g}"
    yield " " * 12 + "└" + "─" * width + "\n", ""
    yield " " * 13 + f"{bounds.left:<{width - len(right)}g}{right}\n", ""
    yield from _legend(series)


def _legend(series: Sequence[Series]) -> Iterator[tuple[str, str]]:
    for number, one in enumerate(series):
        yield f"  ── {one.legend}\n", TERMINAL_COLORS[number % len(TERMINAL_COLORS)]


def _dots(
    points: Sequence[tuple[int, float]], bounds: _Bounds, width: int, height: int
) -> Iterator[tuple[int, int]]:
    """The dots of a curve, with lines between its points; y grows downwards."""
    last: tuple[int, int] | None = None
    for step, value in points:
        x, y = bounds.place(step, value)
        dot = round(x * (width - 1)), round((1 - y) * (height - 1))
        yield from _line(last, dot) if last else [dot]
        last = dot


def _line(start: tuple[int, int], end: tuple[int, int]) -> Iterator[tuple[int, int]]:
    longest = max(abs(end[0] - start[0]), abs(end[1] - start[1]), 1)
    for i in range(longest + 1):
        yield tuple(round(a + (b - a) * i / longest) for a, b in zip(start, end, strict=True))  # type: ignore[misc]


def svg_plot(series: Sequence[Series], title: str = "", width: int = 800, height: int = 450) -> str:
    """The curves as an SVG document; a curve has a gap where its values are not finite."""
    bounds = _bounds(series)
    body = [
        f'<rect width="{width}" height="{height + _LINE * len(series)}" fill="white"/>',
        f'<text x="{width / 2:g}" y="20" text-anchor="middle" font-size="15">{escape(title)}</text>',
    ]
    inner_width, inner_height = width - _MARGIN_LEFT - _MARGIN, height - 2 * _MARGIN - 20

    def place(step: float, value: float) -> tuple[float, float]:
        assert bounds is not None
        x, y = bounds.place(step, value)
        return _MARGIN_LEFT + x * inner_width, _MARGIN + (1 - y) * inner_height

    if bounds is None:
        body.append(
            f'<text x="{width / 2:g}" y="{height / 2:g}" text-anchor="middle">no finite values</text>'
        )
    else:
        body += _axes(bounds, place)
        for number, one in enumerate(series):
            for part in _parts(one.curve):
                dots = [place(*point) for point in part]
                color = COLORS[number % len(COLORS)]
                path = " ".join(f"{x:.2f},{y:.2f}" for x, y in dots)
                body.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.5"/>')
                if len(dots) == 1:
                    x, y = dots[0]
                    body.append(f'<circle cx="{x:.2f}" cy="{y:.2f}" r="2.5" fill="{color}"/>')
    for number, one in enumerate(series):
        y = height + _LINE * number
        color = COLORS[number % len(COLORS)]
        body.append(f'<rect x="{_MARGIN_LEFT}" y="{y - 8}" width="14" height="3" fill="{color}"/>')
        body.append(f'<text x="{_MARGIN_LEFT + 20}" y="{y - 2}">{escape(one.legend)}</text>')
    total = height + _LINE * len(series)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{total}" '
        f'viewBox="0 0 {width} {total}" font-family="sans-serif" font-size="12">\n'
        + "\n".join(body)
        + "\n</svg>\n"
    )


def _axes(bounds: _Bounds, place: object) -> Iterator[str]:
    assert callable(place)
    for i in range(6):
        value = bounds.low + (bounds.high - bounds.low) * i / 5
        step = bounds.left + (bounds.right - bounds.left) * i / 5
        left, y = place(bounds.left, value)
        right, _ = place(bounds.right, value)
        yield f'<line x1="{left:.2f}" y1="{y:.2f}" x2="{right:.2f}" y2="{y:.2f}" stroke="#dddddd"/>'
        yield f'<text x="{left - 6:.2f}" y="{y + 4:.2f}" text-anchor="end">{value:.4g}</text>'
        x, bottom = place(step, bounds.low)
        yield f'<text x="{x:.2f}" y="{bottom + 16:.2f}" text-anchor="middle">{step:g}</text>'


def _parts(curve: Curve) -> Iterator[list[tuple[int, float]]]:
    """Sequences of points with finite values."""
    part: list[tuple[int, float]] = []
    for step, value in zip(curve.steps, curve.values, strict=True):
        if math.isfinite(value):
            part.append((step, value))
        elif part:
            yield part
            part = []
    if part:
        yield part
