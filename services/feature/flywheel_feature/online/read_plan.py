"""Read plans: how a list of features is read online; compiled once per list and used for every request."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import numpy.typing as npt

from flywheel_common.arrays import Array, Ints, Mask
from flywheel_common.errors import InvalidName
from flywheel_feature.definitions.catalog import Catalog
from flywheel_feature.definitions.model import (
    FeatureSet,
    Field,
    OnDemandView,
    RequestSource,
    VersionRef,
    View,
    column_name,
)
from flywheel_feature.encoding.frames import Columns
from flywheel_feature.encoding.same_length_keys import keys_of
from flywheel_feature.online.errors import NoFeatures, UnknownFeature
from flywheel_feature.online.view_reads import (
    NOT_FOUND,
    NOT_YET_VALID,
    NULL,
    OnDemandRead,
    StoredRead,
    ViewValues,
    wide_features,
)
from flywheel_feature.windows.applied_offsets import AppliedOffsets, positions_of


@dataclass(slots=True)
class Answer:
    """n rows of the plan's features. The matrices are transposed views: in memory, a row is contiguous."""

    columns: PickedColumns
    """One per feature, in the order of the request."""
    statuses: npt.NDArray[np.uint8]
    """[features, rows]."""
    event_times: Ints
    """[stored views, rows], microseconds, 0 where the entity was never written."""
    wide: Ints
    """[features of eight bytes, rows] their bits, in the order of the request, 0 where there is no value."""
    applied: tuple[AppliedOffsets, ...] = ()
    """One per stream view; empty unless the request wants them."""

    def rows(self, low: int, high: int) -> Answer:
        return Answer(
            self.columns.rows(low, high),
            self.statuses[:, low:high],
            self.event_times[:, low:high],
            self.wide[:, low:high],
            tuple(view.rows(low, high) for view in self.applied),
        )


class PickedColumns(Sequence[tuple[Array, Mask]]):
    """(values, valid) of features of several views, for a range of rows; each is made when it is accessed."""

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
    """The part of a read that does not depend on the request: views, keys and columns.

    `wanted` holds the (view version, feature name) pairs in the order of the answer.
    """

    def __init__(
        self, catalog: Catalog, wanted: Sequence[tuple[View, str]], feature_set: FeatureSet | None = None
    ) -> None:
        self.project = catalog.project
        self.feature_set = feature_set.name if feature_set is not None else ""
        self.fields = [_field(view, name) for view, name in wanted]
        """One per feature, in the order of the answer."""
        stored, on_demand = _views_to_read(catalog, (view for view, _ in wanted))
        place_of = {view.ref: place for place, view in enumerate([*stored, *on_demand])}
        self.stored = [StoredRead(view, catalog.entity(view.entity).join_keys) for view in stored]
        self.on_demand: list[OnDemandRead] = []
        requests: dict[str, Field] = {}
        for view in on_demand:
            inputs = [(place_of[ref], catalog.view(ref.id, ref.version)) for ref in view.inputs]
            request_fields = _request_fields(catalog, view)
            requests.update({f.name: f for f in request_fields})
            self.on_demand.append(OnDemandRead(view, inputs, request_fields))
        self.request_fields = tuple(requests.values())
        self.view_versions = tuple(view.name for view in stored)
        self.join_keys = tuple({k.name: k for read in self.stored for k in read.keys}.values())
        groups: dict[tuple[str, ...], tuple[Field, ...]] = {}
        for read in self.stored:
            groups.setdefault(read.key_names, read.keys)
        self.key_groups = list(groups.values())
        """Distinct lists of join keys; views of one entity share theirs."""
        self._group_of = [list(groups).index(read.key_names) for read in self.stored]
        self._picks = [
            (place_of[view.ref], [f.name for f in view.features].index(name)) for view, name in wanted
        ]
        self._locate_columns([*stored, *on_demand])

    def _locate_columns(self, views: Sequence[View]) -> None:
        """Find the columns of the wanted features in the concatenated columns of all views."""
        wide = [wide_features(view.features) for view in views]
        first = np.cumsum([0, *(len(view.features) for view in views)]).tolist()
        first_wide = np.cumsum([0, *map(len, wide)]).tolist()
        self._view_of = np.array([view for view, _ in self._picks], np.intp)
        self._features = _places([first[view] + i for view, i in self._picks], first[-1])
        self._wide = _places(
            [first_wide[view] + wide[view].index(i) for view, i in self._picks if i in wide[view]],
            first_wide[-1],
        )

    def redis_keys(self, entities: Sequence[Sequence[bytes]]) -> Sequence[bytes]:
        """Keys of all values, view by view; `entities` has one list of encoded entities per key group."""
        return keys_of([(r.prefix, entities[g]) for r, g in zip(self.stored, self._group_of, strict=True)])

    def decode(
        self, blobs: Sequence[bytes | None], as_of: Ints, requests: Columns, valid_until: Ints | None = None
    ) -> Answer:
        """The answer for n = len(as_of) rows from the values of `redis_keys`.

        Rows of batch views that are later than `valid_until` [n] are NOT_YET_VALID.
        """
        n = len(as_of)
        stored = [
            read.decode(blobs[i * n : (i + 1) * n], as_of, valid_until) for i, read in enumerate(self.stored)
        ]
        views = stored + [step.evaluate(stored, requests, n) for step in self.on_demand]
        bits = _concatenated([v.bits for v in views], self._wide)
        times = np.array([s.event for s in stored]) if stored else np.zeros((0, n), np.int64)
        return Answer(PickedColumns(views, self._picks, 0, n), self._statuses(views).T, times, bits.T)

    def applied_offsets(self, blobs: Sequence[bytes | None], rows: int) -> tuple[AppliedOffsets, ...]:
        """The applied offsets of every stream view, from the values of `redis_keys` for `rows` rows."""
        return tuple(
            AppliedOffsets(read.view.ref, *positions_of(blobs[i * rows : (i + 1) * rows]))
            for i, read in enumerate(self.stored)
            if read.tiles is not None
        )

    def _statuses(self, views: Sequence[ViewValues]) -> npt.NDArray[np.uint8]:
        """[n, features]."""
        bases = np.array([v.base for v in views]).T
        valid = _concatenated([v.valid for v in views], self._features)
        given = bases[:, self._view_of]
        if valid.all():
            return given
        without = np.where((bases == NOT_FOUND) | (bases == NOT_YET_VALID), bases, np.uint8(NULL))
        return np.where(valid, given, without[:, self._view_of])


def _field(view: View, name: str) -> Field:
    feature = view.feature(name)
    assert feature is not None
    return Field(column_name(view.id, name), feature.data_type, feature.vector_size)


def _views_to_read(catalog: Catalog, views: Iterable[View]) -> tuple[list[View], list[View]]:
    """The stored views, including inputs of on-demand views, and the on-demand views, by first use."""
    stored: dict[VersionRef, View] = {}
    on_demand: dict[VersionRef, View] = {}
    for view in views:
        if isinstance(view.kind, OnDemandView):
            on_demand.setdefault(view.ref, view)
            for ref in view.inputs:
                stored.setdefault(ref, catalog.view(ref.id, ref.version))
        else:
            stored.setdefault(view.ref, view)
    return list(stored.values()), list(on_demand.values())


def _request_fields(catalog: Catalog, view: View) -> list[Field]:
    assert isinstance(view.kind, OnDemandView)
    sources = [catalog.source(source_id) for source_id in view.kind.request_sources]
    assert all(isinstance(source.kind, RequestSource) for source in sources)
    return [field for source in sources for field in source.schema]


def _places(wanted: list[int], total: int) -> npt.NDArray[np.intp] | None:
    """The wanted places as an index; None when all `total` are wanted in order."""
    return None if wanted == list(range(total)) else np.array(wanted, np.intp)


def _concatenated(matrices: Sequence[Array], places: npt.NDArray[np.intp] | None) -> Array:
    """The columns of matrices with equal rows side by side, only those at `places`."""
    columns = matrices[0] if len(matrices) == 1 else np.concatenate(matrices, axis=1)
    return columns if places is None else columns[:, places]


def plan_of_set(catalog: Catalog, feature_set: FeatureSet) -> ReadPlan:
    """The plan of a feature set, with the view versions that it is bound to."""
    versions: Mapping[str, int] = {ref.id: ref.version for ref in feature_set.views}
    wanted = []
    for text in feature_set.features:
        view_id, _, name = text.partition(":")
        wanted.append((catalog.view(view_id, versions[view_id]), name))
    return ReadPlan(catalog, wanted, feature_set)


def plan_of_features(catalog: Catalog, features: Sequence[str]) -> ReadPlan:
    """The plan of `view:feature` and `view:*` of the latest view versions.

    Raises UnknownView, UnknownFeature, InvalidName, NoFeatures.
    """
    wanted: list[tuple[View, str]] = []
    for text in features:
        view_id, colon, name = text.partition(":")
        if not colon or not name:
            raise InvalidName(
                f"{text[:100]!r} is not of the form view:feature or view:*.", expected="view:feature"
            )
        view = catalog.view(view_id)
        if name == "*":
            wanted += [(view, f.name) for f in view.features]
        elif view.feature(name) is None:
            names = ", ".join(f.name for f in view.features)
            raise UnknownFeature(f"View {view_id!r} has no feature {name!r}; it has: {names}.")
        else:
            wanted.append((view, name))
    if not wanted:
        raise NoFeatures("Name a feature_set or at least one feature.")
    return ReadPlan(catalog, wanted)
