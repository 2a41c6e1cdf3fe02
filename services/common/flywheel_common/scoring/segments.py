"""Segments of predictions, and the thresholds that a release has for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def segment_parts(segment_keys: Sequence[str], texts: Sequence[str]) -> list[str]:
    """`origin=JFK`, `carrier=UA` for the release's segment keys and their values as text."""
    return [f"{key}={text}" for key, text in zip(segment_keys, texts, strict=True)]


def threshold_of(own: Mapping[str, float], parts: Sequence[str], threshold: float) -> float:
    """The threshold of the whole segment, else of the first segment key that has one, else `threshold`."""
    for segment in (",".join(parts), *parts):
        if segment in own:
            return own[segment]
    return threshold
