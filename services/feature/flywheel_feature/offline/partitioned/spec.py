"""The spec of a join in partitions, and its tasks.

The spec fixes the files and row groups of all inputs. The rows of the spine and of each view are distributed
over buckets by a hash of the view's join keys, so that a spine row and the rows it needs are in the same
bucket, and each bucket is joined separately. The results are then merged in the order of the spine. The
result does not depend on the number of buckets, on where a task runs or on how often it is started.

    CHUNK   rows of the spine from some pieces                               → spine/chunk-i
    RANGE   the rows of all chunks in a range of times, in canonical order   → spine/range-r
    KEYS    keys, time and number of the rows of a range, by bucket          → view-v/keys-r
            (the files of a caller keep their order: there the chunks are the ranges)
    ROWS    the rows of a view from some pieces, by bucket                   → view-v/rows-i
    JOIN    the features of a bucket, by number of the spine row             → view-v/joined-b
    PART    one file of the training set                     → the set's folder; block digests in parts/k
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from pydantic import TypeAdapter

from flywheel_feature.definitions.catalog import Catalog
from flywheel_feature.definitions.model import Entity, FeatureSet, Field, Source, VersionRef, View
from flywheel_feature.offline.joins.feature_join import JoinPlan, plan_join
from flywheel_feature.offline.model import TrainingSetRequest
from flywheel_feature.tables.ports import Piece

SPEC, RESULT, ERROR, PROGRESS = "spec.json", "result.json", "error.json", "progress.json"
BUCKET, ROW, TIME = "__bucket", "__row", "__spine_time"


class Kind(enum.StrEnum):
    """The kinds of tasks; the module's docstring says what each writes."""

    CHUNK = "chunk"
    RANGE = "range"
    KEYS = "keys"
    ROWS = "rows"
    JOIN = "joined"
    PART = "part"


ROWS_OF = {Kind.CHUNK: "spine/rows-", Kind.RANGE: "spine/ordered-"}
"""The beginnings of the keys of the files with rows of the spine."""

Pieces = tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class History:
    """The rows of one stored view."""

    pieces: tuple[Pieces, ...]
    """The pieces of each ROWS task."""
    buckets: int


@dataclass(frozen=True, slots=True)
class PartitionSpec:
    """All inputs of a join in partitions."""

    request: TrainingSetRequest
    feature_set: FeatureSet
    entities: tuple[Entity, ...]
    sources: tuple[Source, ...]
    views: tuple[View, ...]
    spine: tuple[Pieces, ...]
    """The pieces of each CHUNK task."""
    histories: tuple[History, ...]
    """One per stored view, in the order of the plan."""
    rows_per_range: int
    """About how many rows of the spine one RANGE task sorts."""
    uri: str
    """The folder for the files of the training set."""
    extras: tuple[Field, ...] = ()
    keeps_order: bool = False
    """The rows stay in the order of the pieces; else they are sorted. False in specs of older versions."""

    @property
    def ordered(self) -> Kind:
        """The kind of task that writes the rows of the spine in the order of the training set."""
        return Kind.CHUNK if self.keeps_order else Kind.RANGE

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
        return replace(plan_join(self.catalog, self.feature_set), extras=self.extras)

    def to_json(self) -> bytes:
        return _SPEC.dump_json(self)

    @classmethod
    def from_json(cls, text: bytes) -> PartitionSpec:
        return _SPEC.validate_json(text)


_SPEC = TypeAdapter(PartitionSpec)


@dataclass(frozen=True, slots=True)
class Task:
    """One step. It may run more than once: its output is complete or absent, and always the same."""

    kind: Kind
    index: int
    view: int = -1
    low: int | None = None
    high: int | None = None
    """low <= x < high for x = spine time (RANGE), event time (ROWS) or number of a spine row (PART)."""
    offset: int = 0
    """The number of the first row of the ordered rows (KEYS)."""

    @property
    def output(self) -> str:
        """The key of the file that exists when the task is done."""
        match self.kind:
            case Kind.CHUNK | Kind.RANGE:
                return f"spine/{self.kind}-{self.index:06d}.json"
            case Kind.PART:
                return f"parts/{self.index:06d}.json"
        return f"{self.folder}{self.index:06d}.parquet"

    @property
    def rows_file(self) -> str:
        """The key of the file with the rows of a CHUNK or RANGE task."""
        return f"{ROWS_OF[self.kind]}{self.index:06d}.parquet"

    @property
    def folder(self) -> str:
        return f"view-{self.view:03d}/{self.kind}-"
