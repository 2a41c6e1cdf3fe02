"""Events of a stream view, and the change that a batch of them makes to the tiles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field as default
from typing import Any

import numpy.typing as npt

from flywheel_common.arrays import Floats, Ints, Mask


@dataclass(frozen=True, slots=True)
class Events:
    """Events of one view, any order. `code` numbers the entity of each; values are float64 with a mask of those present.

    `observed` has hyperloglog.observations of fields that are counted so; `texts` has UTF-8 or bytes [n] of fields whose newest texts are
    kept: their values are the lengths. `bits` has INT64 values [n], seen as doubles, of fields whose first or newest ones are kept.
    """

    code: Ints
    time: Ints
    known: Ints
    rank: Ints
    values: Mapping[str, tuple[Floats, Mask]]
    observed: Mapping[str, Ints] = default(default_factory=dict)
    texts: Mapping[str, npt.NDArray[Any]] = default(default_factory=dict)
    bits: Mapping[str, Floats] = default(default_factory=dict)

    def take(self, rows: npt.NDArray[Any]) -> Events:
        values = {name: (v[rows], m[rows]) for name, (v, m) in self.values.items()}
        observed = {name: o[rows] for name, o in self.observed.items()}
        texts = {name: t[rows] for name, t in self.texts.items()}
        bits = {name: b[rows] for name, b in self.bits.items()}
        times = self.time[rows], self.known[rows]
        return Events(self.code[rows], *times, self.rank[rows], values, observed, texts, bits)

    def kept(self, field: str) -> Floats:
        """The values of a field as FIRST, LAST and LAST_N keep them."""
        return self.bits[field] if field in self.bits else self.values[field][0]


@dataclass(frozen=True, slots=True)
class Delta:
    """Partial aggregates of one entity's events, to be merged into its state."""

    newest: int
    body: bytes
    """Doubles: tiles, count per list and sketch, then tiles, list entries and registers as in a state."""
    texts: bytes = b""
