"""A join in partitions as a value: inputs pinned to files and row groups, and the tasks that it falls into.

Rows of the spine and of each view's history are spread over buckets by a hash of the view's join keys, so that what a spine row
needs lies in its own bucket, and each bucket is joined by itself. The results are put together again in the order of the spine.
Nothing of the result depends on the number of buckets, on where a task runs or on how often it was begun.

    CHUNK   rows of the spine out of some pieces                         → spine/chunk-i
    RANGE   the chunks' rows of a range of times, in canonical order     → spine/range-r
    KEYS    keys, time and number of a range's rows, by bucket of a view → view-v/keys-r
    ROWS    the view's rows out of some pieces, by bucket                → view-v/rows-i
    JOIN    a bucket's features, by number of the spine row              → view-v/joined-b
    PART    one file of the training set                                 → the set's own folder, digests in parts/k
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from pydantic import TypeAdapter

from flywheel_feature.definitions.catalog import Catalog
from flywheel_feature.definitions.model import Entity, FeatureSet, Source, VersionRef, View
from flywheel_feature.offline.joins.feature_join import JoinPlan, plan_join
from flywheel_feature.offline.model import TrainingSetRequest
from flywheel_feature.tables.ports import Piece

SPEC, RESULT, ERROR, PROGRESS = "spec.json", "result.json", "error.json", "progress.json"
BUCKET, ROW, TIME = "__bucket", "__row", "__spine_time"


class Kind(enum.StrEnum):
    CHUNK = "chunk"
    RANGE = "range"
    KEYS = "keys"
    ROWS = "rows"
    JOIN = "joined"
    PART = "part"


Pieces = tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class History:
    """The rows of one stored view, in the plan's order of views: per ROWS task its pieces."""

    pieces: tuple[Pieces, ...]
    buckets: int


@dataclass(frozen=True, slots=True)
class PartitionSpec:
    request: TrainingSetRequest
    feature_set: FeatureSet
    entities: tuple[Entity, ...]
    sources: tuple[Source, ...]
    views: tuple[View, ...]
    spine: tuple[Pieces, ...]
    """Per CHUNK task its pieces."""
    histories: tuple[History, ...]
    rows_per_range: int
    """About so many rows of the spine are sorted at once."""
    uri: str
    """Where the training set's files go."""

    @property
    def catalog(self) -> Catalog:
        versions = {v.ref: v for v in self.views}
        return Catalog(
            self.request.project,
            entities={e.id: e for e in self.entities},
            sources={s.id: s for s in self.sources},
            views=versions,
            feature_sets={VersionRef(self.feature_set.id, self.feature_set.version): self.feature_set},
        )

    def plan(self) -> JoinPlan:
        return plan_join(self.catalog, self.feature_set)

    def to_json(self) -> bytes:
        return _SPEC.dump_json(self)

    @classmethod
    def from_json(cls, text: bytes) -> PartitionSpec:
        return _SPEC.validate_json(text)


_SPEC = TypeAdapter(PartitionSpec)


@dataclass(frozen=True, slots=True)
class Task:
    """One step, begun as often as needed: its output appears whole or not at all, and is the same each time."""

    kind: Kind
    index: int
    view: int = -1
    low: int | None = None
    high: int | None = None
    """RANGE: times low <= t < high of the spine; ROWS: event times; PART: numbers of spine rows."""
    offset: int = 0
    """KEYS: number of the range's first row."""

    @property
    def output(self) -> str:
        """Key of what is there when the task is done."""
        match self.kind:
            case Kind.CHUNK | Kind.RANGE:
                return f"spine/{self.kind}-{self.index:06d}.json"
            case Kind.PART:
                return f"parts/{self.index:06d}.json"
        return f"{self.folder}{self.index:06d}.parquet"

    @property
    def folder(self) -> str:
        return f"view-{self.view:03d}/{self.kind}-"
