"""A uniform sample of the rows of a stream, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import polars as pl

KEY = "__flywheel_key"


def sample(
    batches: Iterator[pl.DataFrame],
    count: int,
    rng: np.random.Generator,
    progress: Callable[[int], None] = lambda _: None,
) -> pl.DataFrame:
    """At most `count` rows in random order; each set of so many rows is equally probable.

    Every row draws a number, and the rows with the smallest ones are kept.
    """
    kept: pl.DataFrame | None = None
    rows = 0
    for frame in batches:
        rows += frame.height
        drawn = frame.with_columns(pl.Series(KEY, rng.random(frame.height)))
        joined = drawn if kept is None else pl.concat([kept, drawn], how="vertical_relaxed")
        kept = joined.bottom_k(count, by=KEY) if joined.height > count else joined
        progress(rows)
    return pl.DataFrame() if kept is None else kept.sort(KEY).drop(KEY)
