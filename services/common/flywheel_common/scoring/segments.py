"""Segments of predictions, and the thresholds that a release has for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def segment_parts(segment_keys: Sequence[str], values: Sequence[object]) -> list[str]:
    """`origin=JFK`, `carrier=UA` for the release's segment keys and their values, in the types that the
    feature set declares; null is empty."""
    return [
        f"{key}={'' if value is None else value}" for key, value in zip(segment_keys, values, strict=True)
    ]


def threshold_of(own: Mapping[str, float], parts: Sequence[str], threshold: float) -> float:
    """The threshold of the whole segment, else of the first segment key that has one, else `threshold`."""
    for segment in (",".join(parts), *parts):
        if segment in own:
            return own[segment]
    return threshold
