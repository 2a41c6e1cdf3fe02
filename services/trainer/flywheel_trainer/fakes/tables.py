"""`TableReader` in memory."""

from __future__ import annotations

import polars as pl


class MemoryTables:
    """`TableReader` from the dictionary `known`, by address."""

    def __init__(self) -> None:
        self.known: dict[str, pl.DataFrame] = {}

    def __call__(self, uri: str, columns: list[str]) -> pl.DataFrame:
        if uri not in self.known:
            raise FileNotFoundError(uri)
        frame = self.known[uri]
        return frame.select([name for name in dict.fromkeys(columns) if name in frame.columns])
