"""Curves of metrics as a PNG file, drawn by matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from flywheel.tracking.curves import COLORS, Series
from flywheel.tracking.errors import TrackingError

_DPI = 100
_LARGEST = 1e307
"""matplotlib overflows when it computes the axis of larger values; they are drawn there."""


def write_png(
    path: Path, series: Sequence[Series], title: str = "", width: int = 800, height: int = 450
) -> None:
    """Write the curves with `width` × `height` pixels and a legend below them; a curve has a gap where its
    values are not finite. Raises TrackingError without the extra `flywheel[plot]`, OSError."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise TrackingError("A PNG file needs matplotlib: install flywheel[plot], or use --svg.") from error
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    # The texts are the user's: a dollar sign begins no formula.
    axes.set_title(title, parse_math=False)
    axes.grid(visible=True, color="#dddddd")
    for number, one in enumerate(series):
        values = np.array(one.curve.values)
        values[~np.isfinite(values)] = np.nan
        # The marker shows a point that has no neighbours.
        axes.plot(
            one.curve.steps,
            values.clip(-_LARGEST, _LARGEST),
            color=COLORS[number % len(COLORS)],
            marker=".",
            label=one.legend,
        )
    legend = figure.legend(loc="outside lower left", frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
    figure.savefig(path, format="png")
