"""The pieces of a window: days and hours where whole ones lie inside, narrower panes at the edges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flywheel_monitor.windows.span import Span

HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US


def rollup_widths(pane_us: int) -> tuple[int, ...]:
    """The widths that panes of this width are added up to: hours and days, as far as they are whole panes."""
    return tuple(w for w in (HOUR_US, DAY_US) if w > pane_us and w % pane_us == 0)


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


@dataclass(frozen=True)
class Part:
    """A piece, or the part of it that begins in one pane of `Kept.widest_us`."""

    piece: Piece
    within_us: int | None = None
    """Start of that pane; None for pieces of that width."""


def split(pieces_: Sequence[Piece], width_us: int | None) -> list[Part]:
    """The parts of pieces, by the panes of this width that contain them."""
    found: list[Part] = []
    for piece in pieces_:
        if width_us is None or piece.width_us >= width_us:
            found.append(Part(piece))
            continue
        at = piece.span.start_us
        while at < piece.span.end_us:
            within = at // width_us * width_us
            end = min(piece.span.end_us, within + width_us)
            found.append(Part(Piece(piece.width_us, Span(at, end)), within))
            at = end
    return found


@dataclass(frozen=True)
class Kept:
    """The panes that are kept of a version: those of `pane_us` from `minutes_from_us` on, and those of the
    wider `rollups` at all times. `minutes_from_us` is a multiple of each, or 0: all panes are kept."""

    pane_us: int
    rollups: tuple[int, ...]
    minutes_from_us: int = 0

    @property
    def widest_us(self) -> int | None:
        """The widest panes, which change whenever a pane within them does; None without rollups."""
        return self.rollups[-1] if self.rollups else None

    def readable(self, span: Span) -> Span:
        """The span, widened to whole panes of the narrowest rollup where narrower ones are deleted."""
        if not self.rollups or not self.minutes_from_us:
            return span
        width = self.rollups[0]
        start, end = span.start_us, span.end_us
        if start < self.minutes_from_us:
            start = start // width * width
        if end < self.minutes_from_us:
            end = -(-end // width) * width
        return Span(start, end)

    def pieces(self, span: Span, least_panes: int = 1) -> list[Piece]:
        """Pieces that cover the readable span once. Wider panes than needed are used only where the span has
        `least_panes` of them."""
        span = self.readable(span)
        length = span.end_us - span.start_us
        wide = tuple(w for w in self.rollups if length >= w * least_panes)
        boundary = self.minutes_from_us if self.rollups and self.minutes_from_us else span.start_us
        found = []
        if span.start_us < boundary:
            old = Span(span.start_us, min(span.end_us, boundary))
            found += pieces(old, tuple(dict.fromkeys((self.rollups[0], *wide))))
        if boundary < span.end_us:
            found += pieces(Span(max(span.start_us, boundary), span.end_us), (self.pane_us, *wide))
        return found
