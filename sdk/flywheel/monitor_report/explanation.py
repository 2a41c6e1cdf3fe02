"""Why a window drifted, as a table of texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from flywheel_protos.monitor.v1 import explanation_pb2 as pb

HEADER = ("feature", "impact", "importance", "drift", "bins that moved", "segments")
EQUAL_IMPORTANCE = "The version has no importances of its features: all count alike."


def explanation_rows(found: pb.ExplainDriftResponse) -> Iterator[Sequence[str]]:
    """Return a row per feature, the largest impact first. Missing and unseen values stand beside the bins."""
    for one in found.features:
        moved = [
            f"{bin_text(b)} {_change(b.reference_share, b.observed_share)} (PSI {b.psi_term:.3g})"
            for b in one.bins
        ]
        for name, before, after in (
            ("missing", one.reference_null_rate, one.null_rate),
            ("unseen", one.reference_unseen_rate, one.unseen_rate),
        ):
            if before != after:
                moved.append(f"{name} {_change(before, after)}")
        segments = [
            f"{part.segment or 'other rows'}: {part.row_share:.1%} of the rows, PSI {part.psi_part:+.3g}"
            for part in one.segments
        ]
        numbers = [f"{value:.3g}" for value in (one.impact, one.importance, one.drift)]
        yield one.feature, *numbers, "\n".join(moved), "\n".join(segments)


def bin_text(found: pb.MovedBin) -> str:
    """Return the category, or the range of values."""
    if not found.HasField("above"):
        return f"≤ {found.up_to:.4g}" if found.HasField("up_to") else found.category
    if not found.HasField("up_to"):
        return f"> {found.above:.4g}"
    return f"({found.above:.4g}, {found.up_to:.4g}]"


def _change(before: float, after: float) -> str:
    return f"{before:.1%} → {after:.1%}"
