"""How a list of features is read online: compiled once per feature set, used for every request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from flywheel_common.arrays import Array, Ints, Mask
from flywheel_common.errors import InvalidArgument, NotFound
from flywheel_feature.definitions.catalog import Catalog
from flywheel_feature.definitions.model import (
    DataType,
    Feature,
    FeatureSet,
    Field,
    OnDemandView,
    RequestSource,
    StreamView,
    View,
    column_name,
)
from flywheel_feature.definitions.ttl import is_stale
from flywheel_feature.encoding.frames import Columns, from_series, to_frame
from flywheel_feature.encoding.keys import key_prefix
from flywheel_feature.encoding.row_encoding import WIDE, RowLayout
from flywheel_feature.encoding.same_length_keys import keys_of
from flywheel_feature.expressions.arithmetic import arithmetic
from flywheel_feature.expressions.sql import CompiledExpressions, compile_expressions
from flywheel_feature.windows.applied_offsets import AppliedOffsets, positions_of
from flywheel_feature.windows.tile_layout import TileLayout
from flywheel_feature.windows.tile_reading import TileReader

PRESENT, NULL, NOT_FOUND, STALE = 1, 2, 3, 4


@dataclass(slots=True)
class ViewValues:
    """A view's values for n rows."""

    base: npt.NDArray[np.uint8]
    """Status of a value that is there, per row: PRESENT, STALE or NOT_FOUND."""
    event: Ints
    valid: Mask
    """[n, features]."""
    bits: Ints
    """[n, features of eight bytes]: their bits, 0 where there is no value."""
    columns: Sequence[tuple[Array, Mask]]
    """One per feature of the view."""

    @classmethod
    def of_columns(
        cls, base: npt.NDArray[np.uint8], event: Ints, columns: list[tuple[Array, Mask]], wide: Sequence[int]
    ) -> ViewValues:
        valid = np.empty((len(base), len(columns)), np.bool_)
        for i, (_, mask) in enumerate(columns):
            valid[:, i] = mask
        return cls(base, event, valid, _bits(columns, wide), columns)


class StoredRead:
    """One batch or stream view version."""

    def __init__(self, view: View, keys: tuple[Field, ...]) -> None:
        self.view = view
        self.keys = keys
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

    def decode(self, blobs: Sequence[bytes | None], as_of: Ints) -> ViewValues:
        if self.tiles is not None:
            read = self.tiles.read(blobs, as_of)
            base = self._base(read.found, read.newest, as_of)
            bits = _bits(read.columns, self._wide) if self.tiles.others else read.bits
            return ViewValues(base, read.newest, read.valid, bits, read.columns)
        assert self.rows is not None
        rows = self.rows.decode(blobs)
        return ViewValues(self._base(rows.found, rows.event, as_of), rows.event, rows.valid, rows.bits, rows)

    def _base(self, found: Mask, event: Ints, as_of: Ints) -> npt.NDArray[np.uint8]:
        base = np.where(found, np.uint8(PRESENT), np.uint8(NOT_FOUND))
        if self.view.ttl:
            base[found & is_stale(as_of, event, self.view.ttl)] = STALE
        return base


class OnDemandRead:
    """One on-demand view version: expressions over columns of stored reads and request fields."""

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
        return ViewValues.of_columns(base, np.zeros(rows, np.int64), outputs, self._wide)

    def _computed(self, columns: Columns, rows: int) -> list[tuple[Array, Mask]]:
        """One per feature."""
        found = {name: step.compute(columns) for name, step in self._arithmetic.items()}
        if self._compiled.names:
            frame = self._compiled.compute(to_frame(self._framed, columns, rows))
            found.update(
                (f.name, from_series(frame.get_column(f.name), f.data_type))
                for f in self.view.features
                if f.name not in self._arithmetic
            )
        return [found[f.name] for f in self.view.features]


@dataclass(slots=True)
class Answer:
    """n rows of the plan's features. The matrices lie in memory row by row, so that a row is one piece."""

    columns: PickedColumns
    """One per feature, in the order asked."""
    statuses: npt.NDArray[np.uint8]
    """[features, rows]."""
    event_times: Ints
    """[stored views, rows], microseconds, 0 where never written."""
    wide: Ints
    """[columns of 8-byte numbers, rows]: their bits, in the order asked, 0 where there is no value."""
    applied: tuple[AppliedOffsets, ...] = ()
    """One per stream view, for those who ask."""

    def rows(self, low: int, high: int) -> Answer:
        return Answer(
            self.columns.rows(low, high),
            self.statuses[:, low:high],
            self.event_times[:, low:high],
            self.wide[:, low:high],
            tuple(view.rows(low, high) for view in self.applied),
        )


class PickedColumns(Sequence[tuple[Array, Mask]]):
    """(values, valid) of features of several views, for some rows; made where they are looked at."""

    __slots__ = ("_high", "_low", "_picks", "_views")

    def __init__(
        self, views: Sequence[ViewValues], picks: Sequence[tuple[int, int]], low: int, high: int
    ) -> None:
        self._views, self._picks = views, picks
        self._low, self._high = low, high

    def rows(self, low: int, high: int) -> PickedColumns:
        return PickedColumns(self._views, self._picks, self._low + low, self._low + high)

    def __len__(self) -> int:
        return len(self._picks)

    @overload
    def __getitem__(self, index: int) -> tuple[Array, Mask]: ...
    @overload
    def __getitem__(self, index: slice) -> list[tuple[Array, Mask]]: ...
    def __getitem__(self, index: int | slice) -> tuple[Array, Mask] | list[tuple[Array, Mask]]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        view, feature = self._picks[index]
        values, valid = self._views[view].columns[feature]
        return values[self._low : self._high], valid[self._low : self._high]


class ReadPlan:
    """Everything about a list of features that does not depend on the request."""

    def __init__(
        self, catalog: Catalog, wanted: Sequence[tuple[View, str]], feature_set: FeatureSet | None = None
    ) -> None:
        self.project = catalog.project
        self.feature_set = feature_set.name if feature_set is not None else ""
        self.stored: list[StoredRead] = []
        self.on_demand: list[OnDemandRead] = []
        self.fields: list[Field] = []
        keys: dict[str, Field] = {}
        requests: dict[str, Field] = {}
        places: dict[Any, tuple[bool, int]] = {}

        def stored_place(view: View) -> int:
            if view.ref not in places:
                own = catalog.entity(view.entity).join_keys
                keys.update({k.name: k for k in own})
                places[view.ref] = False, len(self.stored)
                self.stored.append(StoredRead(view, own))
            return places[view.ref][1]

        picks: list[tuple[bool, int, int]] = []
        for view, name in wanted:
            if isinstance(view.kind, OnDemandView):
                if view.ref not in places:
                    inputs = [catalog.view(ref.id, ref.version) for ref in view.inputs]
                    own_requests = [f for s in view.kind.request_sources for f in _request_fields(catalog, s)]
                    requests.update({f.name: f for f in own_requests})
                    step = OnDemandRead(view, [(stored_place(v), v) for v in inputs], own_requests)
                    places[view.ref] = True, len(self.on_demand)
                    self.on_demand.append(step)
            else:
                stored_place(view)
            feature = view.feature(name)
            assert feature is not None
            computed, place = places[view.ref]
            picks.append((computed, place, [f.name for f in view.features].index(name)))
            self.fields.append(Field(column_name(view.id, name), feature.data_type, feature.vector_size))
        self._pick(picks)
        self.join_keys = tuple(keys.values())
        self.request_fields = tuple(requests.values())
        self.view_versions = tuple(s.view.name for s in self.stored)
        groups: dict[tuple[str, ...], int] = {}
        self.key_groups: list[tuple[Field, ...]] = []
        """Distinct lists of join keys; views of one entity share theirs."""
        self._group_of: list[int] = []
        for read in self.stored:
            names = tuple(k.name for k in read.keys)
            if names not in groups:
                groups[names] = len(self.key_groups)
                self.key_groups.append(read.keys)
            self._group_of.append(groups[names])

    def redis_keys(self, entities: Sequence[Sequence[bytes]]) -> Sequence[bytes]:
        """Keys of all values, view by view; `entities` has one list of encoded entities per key group."""
        return keys_of([(r.prefix, entities[g]) for r, g in zip(self.stored, self._group_of, strict=True)])

    def _pick(self, picks: Sequence[tuple[bool, int, int]]) -> None:
        """Where the wanted features lie once all views stand side by side, computed ones last."""
        views = [*(s.view for s in self.stored), *(s.view for s in self.on_demand)]
        self._picks = [(len(self.stored) + place if computed else place, i) for computed, place, i in picks]
        first, first_wide = [0], [0]
        wide = [{i: n for n, i in enumerate(wide_features(v.features))} for v in views]
        for view, own in zip(views, wide, strict=True):
            first.append(first[-1] + len(view.features))
            first_wide.append(first_wide[-1] + len(own))
        self._features = _places([first[v] + i for v, i in self._picks], first[-1])
        self._view_of = np.array([v for v, _ in self._picks], np.intp)
        self._wide = _places(
            [first_wide[v] + wide[v][i] for v, i in self._picks if i in wide[v]], first_wide[-1]
        )

    def decode(self, blobs: Sequence[bytes | None], as_of: Ints, requests: Columns) -> Answer:
        """The answer for n = len(as_of) rows out of what `redis_keys` named."""
        n = len(as_of)
        stored = [read.decode(blobs[i * n : (i + 1) * n], as_of) for i, read in enumerate(self.stored)]
        views = stored + [step.evaluate(stored, requests, n) for step in self.on_demand]
        bits = _beside([v.bits for v in views], self._wide)
        times = np.array([s.event for s in stored]) if stored else np.zeros((0, n), np.int64)
        return Answer(PickedColumns(views, self._picks, 0, n), self._statuses(views).T, times, bits.T)

    def applied_offsets(self, blobs: Sequence[bytes | None], rows: int) -> tuple[AppliedOffsets, ...]:
        """The applied offsets of every stream view, from the values that `redis_keys` named for `rows` rows."""
        return tuple(
            AppliedOffsets(read.view.ref, *positions_of(blobs[i * rows : (i + 1) * rows]))
            for i, read in enumerate(self.stored)
            if read.tiles is not None
        )

    def _statuses(self, views: Sequence[ViewValues]) -> npt.NDArray[np.uint8]:
        """[n, features]."""
        bases = np.array([v.base for v in views]).T
        valid = _beside([v.valid for v in views], self._features)
        given = bases[:, self._view_of]
        if valid.all():
            return given
        without = np.where(bases == NOT_FOUND, np.uint8(NOT_FOUND), np.uint8(NULL))
        return np.where(valid, given, without[:, self._view_of])


def wide_features(features: Sequence[Feature | Field]) -> list[int]:
    """Places of the features of eight bytes."""
    return [i for i, f in enumerate(features) if f.data_type in WIDE]


def _bits(columns: Sequence[tuple[Array, Mask]], wide: Sequence[int]) -> Ints:
    """[n, wide]: the bits of features of eight bytes, 0 where there is no value."""
    bits = np.zeros((len(columns[0][1]) if columns else 0, len(wide)), "<i8")
    for place, i in enumerate(wide):
        values, mask = columns[i]
        np.copyto(bits[:, place], values.view("<i8"), where=mask)
    return bits


def _places(wanted: list[int], total: int) -> npt.NDArray[np.intp] | None:
    """None when everything is wanted as it lies."""
    return None if wanted == list(range(total)) else np.array(wanted, np.intp)


def _beside(matrices: Sequence[Array], places: npt.NDArray[np.intp] | None) -> Array:
    whole = matrices[0] if len(matrices) == 1 else np.concatenate(matrices, axis=1)
    return whole if places is None else whole[:, places]


def _request_fields(catalog: Catalog, source_id: str) -> tuple[Field, ...]:
    source = catalog.source(source_id)
    assert isinstance(source.kind, RequestSource)
    return source.schema


def plan_of_set(catalog: Catalog, feature_set: FeatureSet) -> ReadPlan:
    """Reads a feature set with the view versions that it is bound to."""
    versions: Mapping[str, int] = {ref.id: ref.version for ref in feature_set.views}
    wanted = []
    for text in feature_set.features:
        view_id, _, name = text.partition(":")
        wanted.append((catalog.view(view_id, versions[view_id]), name))
    return ReadPlan(catalog, wanted, feature_set)


def plan_of_features(catalog: Catalog, features: Sequence[str]) -> ReadPlan:
    """Reads `view:feature` and `view:*` of the latest view versions."""
    wanted: list[tuple[View, str]] = []
    for text in features:
        view_id, colon, name = text.partition(":")
        if not colon or not name:
            raise InvalidArgument(
                f"{text[:100]!r} is not of the form view:feature or view:*.", reason="INVALID_NAME"
            )
        view = catalog.view(view_id)
        if name == "*":
            wanted += [(view, f.name) for f in view.features]
        elif view.feature(name) is None:
            raise NotFound(
                f"View {view_id!r} has no feature {name!r}; it has: {', '.join(f.name for f in view.features)}.",
                reason="UNKNOWN_FEATURE",
            )
        else:
            wanted.append((view, name))
    if not wanted:
        raise InvalidArgument("Name a feature_set or at least one feature.", reason="NO_FEATURES")
    return ReadPlan(catalog, wanted)
