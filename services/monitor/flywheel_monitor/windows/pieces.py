"""The pieces of a window: days and hours where whole ones lie inside, narrower panes at the edges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flywheel_monitor.windows.span import Span


@dataclass(frozen=True)
class Piece:
    """All panes of one width that begin in the span."""

    width_us: int
    span: Span


def pieces(span: Span, widths: Sequence[int]) -> list[Piece]:
    """Pieces that cover every pane of the span once. `widths`: the narrowest first, each a multiple of the
    one before; the span consists of whole panes of the narrowest."""
    *narrower, widest = widths
    if not narrower:
        return [Piece(widest, span)]
    start, end = -(-span.start_us // widest) * widest, span.end_us // widest * widest
    if start >= end:
        return pieces(span, narrower)
    found = [Piece(widest, Span(start, end))]
    if span.start_us < start:
        found += pieces(Span(span.start_us, start), narrower)
    if end < span.end_us:
        found += pieces(Span(end, span.end_us), narrower)
    return found
