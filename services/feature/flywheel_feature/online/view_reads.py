"""Reading one view version online: stored values are decoded, on-demand features are computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flywheel_common.arrays import Array, Ints, Mask
from flywheel_feature.definitions.model import (
    DataType,
    Feature,
    Field,
    OnDemandView,
    StreamView,
    View,
    column_name,
)
from flywheel_feature.definitions.ttl import is_stale
from flywheel_feature.encoding.frames import Columns, from_series, to_frame
from flywheel_feature.encoding.keys import key_prefix
from flywheel_feature.encoding.row_encoding import WIDE, RowLayout
from flywheel_feature.expressions.arithmetic import arithmetic
from flywheel_feature.expressions.sql import CompiledExpressions, compile_expressions
from flywheel_feature.windows.tile_layout import TileLayout
from flywheel_feature.windows.tile_reading import TileReader

PRESENT, NULL, NOT_FOUND, STALE, NOT_YET_VALID = 1, 2, 3, 4, 5
"""Statuses of a value; the numbers are those of flywheel.feature.v1.FeatureStatus."""


@dataclass(slots=True)
class ViewValues:
    """The values of one view for n rows."""

    base: npt.NDArray[np.uint8]
    """[n] the status of the row's values that are not null; NOT_FOUND, NOT_YET_VALID: of all values."""
    event: Ints
    """[n] event times, 0 where the entity was never written."""
    valid: Mask
    """[n, features] which values are not null."""
    bits: Ints
    """[n, features of eight bytes] their bits, 0 where there is no value."""
    columns: Sequence[tuple[Array, Mask]]
    """One per feature of the view."""
    later: Mask | None = None
    """[n] the rows that are NOT_YET_VALID; None: none."""

    @classmethod
    def of_columns(
        cls, base: npt.NDArray[np.uint8], event: Ints, columns: list[tuple[Array, Mask]], wide: Sequence[int]
    ) -> ViewValues:
        valid = np.empty((len(base), len(columns)), np.bool_)
        for i, (_, mask) in enumerate(columns):
            valid[:, i] = mask
        return cls(base, event, valid, _bits(columns, wide), columns)


class StoredRead:
    """Reads one batch or stream view version."""

    def __init__(self, view: View, keys: tuple[Field, ...]) -> None:
        self.view = view
        self.keys = keys
        self.key_names = tuple(k.name for k in keys)
        self.prefix = key_prefix(view)
        self._wide = wide_features(view.features)
        if isinstance(view.kind, StreamView):
            kinds = [f.data_type for f in view.features]
            self.tiles: TileReader | None = TileReader(
                TileLayout(view.kind.aggregations, view.kind.tile, kinds)
            )
            self.rows = None
        else:
            self.tiles, self.rows = None, RowLayout(view.features)

    def decode(
        self, blobs: Sequence[bytes | None], as_of: Ints, valid_until: Ints | None = None
    ) -> ViewValues:
        if self.tiles is not None:
            read = self.tiles.read(blobs, as_of)
            base = self._base(read.found, read.newest, as_of)
            bits = _bits(read.columns, self._wide) if self.tiles.others else read.bits
            return ViewValues(base, read.newest, read.valid, bits, read.columns)
        assert self.rows is not None
        rows = self.rows.decode(blobs)
        later = None if valid_until is None else rows.hide_later_than(valid_until)
        base = self._base(rows.found, rows.event, as_of)
        if later is not None:
            base[later] = NOT_YET_VALID
        return ViewValues(base, rows.event, rows.valid, rows.bits, rows, later)

    def _base(self, found: Mask, event: Ints, as_of: Ints) -> npt.NDArray[np.uint8]:
        base = np.where(found, np.uint8(PRESENT), np.uint8(NOT_FOUND))
        if self.view.ttl:
            base[found & is_stale(as_of, event, self.view.ttl)] = STALE
        return base


class OnDemandRead:
    """Computes one on-demand view version: expressions over columns of stored views and request fields.

    `inputs` holds (place among the stored reads, view) per view that it reads.
    """

    def __init__(self, view: View, inputs: Sequence[tuple[int, View]], requests: Sequence[Field]) -> None:
        assert isinstance(view.kind, OnDemandView)
        self.view = view
        self._wide = wide_features(view.features)
        self._stored: dict[str, tuple[int, int, Field]] = {}
        for place, read in inputs:
            for i, f in enumerate(read.features):
                name = column_name(read.id, f.name)
                self._stored[name] = place, i, Field(name, f.data_type, f.vector_size)
        self._requests = {f.name: f for f in requests}
        fields = {f.name: f for f in (*(s[2] for s in self._stored.values()), *self._requests.values())}
        numbers = {name for name, f in fields.items() if f.data_type == DataType.FLOAT64}
        plain = {
            e.feature.name: arithmetic(e.sql, numbers)
            for e in view.kind.expressions
            if e.feature.data_type == DataType.FLOAT64
        }
        self._arithmetic = {name: found for name, found in plain.items() if found is not None}
        sizes = {f.name: f.vector_size for f in fields.values()}
        sizes.update({e.feature.name: e.feature.vector_size for e in view.kind.expressions})
        self._compiled: CompiledExpressions = compile_expressions(
            [
                (e.feature.name, int(e.feature.data_type), e.sql)
                for e in view.kind.expressions
                if e.feature.name not in self._arithmetic
            ],
            {f.name: int(f.data_type) for f in fields.values()},
            vector_sizes=sizes,
        )
        self._framed = [fields[c] for c in self._compiled.input_columns]
        self._read = tuple(
            dict.fromkeys(
                [*self._compiled.input_columns, *(c for a in self._arithmetic.values() for c in a.columns)]
            )
        )
        self._places = sorted({self._stored[c][0] for c in self._read if c in self._stored})

    def evaluate(self, stored: Sequence[ViewValues], requests: Columns, rows: int) -> ViewValues:
        columns: Columns = {}
        for name in self._read:
            if name in self._stored:
                place, i, _ = self._stored[name]
                columns[name] = stored[place].columns[i]
            else:
                columns[name] = requests[name]
        base = np.full(rows, PRESENT, np.uint8)
        for place in self._places:
            base[stored[place].base == STALE] = STALE
        outputs = self._computed(columns, rows)
        for place in self._places:
            later = stored[place].later
            if later is not None:
                # An expression may give a value for a null, but this value is unknown, not null.
                base[later] = NOT_YET_VALID
                outputs = [(values, valid & ~later) for values, valid in outputs]
        return ViewValues.of_columns(base, np.zeros(rows, np.int64), outputs, self._wide)

    def _computed(self, columns: Columns, rows: int) -> list[tuple[Array, Mask]]:
        """The column of every feature."""
        found = {name: step.compute(columns) for name, step in self._arithmetic.items()}
        if self._compiled.names:
            frame = self._compiled.compute(to_frame(self._framed, columns, rows))
            found.update(
                (f.name, from_series(frame.get_column(f.name), f.data_type))
                for f in self.view.features
                if f.name not in self._arithmetic
            )
        return [found[f.name] for f in self.view.features]


def wide_features(features: Sequence[Feature | Field]) -> list[int]:
    """Places of the features whose values have eight bytes."""
    return [i for i, f in enumerate(features) if f.data_type in WIDE]


def _bits(columns: Sequence[tuple[Array, Mask]], wide: Sequence[int]) -> Ints:
    """[n, wide] the bits of the features at the places `wide`, 0 where there is no value."""
    bits = np.zeros((len(columns[0][1]) if columns else 0, len(wide)), "<i8")
    for place, i in enumerate(wide):
        values, mask = columns[i]
        np.copyto(bits[:, place], values.view("<i8"), where=mask)
    return bits
