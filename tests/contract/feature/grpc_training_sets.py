"""offline.ports.TrainingSets by the RPCs of the service."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from flywheel_common.errors import NotFound
from flywheel_feature.definitions.model import DataType, Field
from flywheel_feature.encoding.wire_columns import micros
from flywheel_feature.offline.model import (
    ColumnProfile,
    FileSpine,
    JoinMode,
    SourceSpine,
    Spine,
    TrainingSet,
)
from flywheel_feature.offline.ports import TrainingSets
from flywheel_protos.feature.v1 import feature_pb2 as pb
from flywheel_protos.feature.v1 import training_set_pb2 as ts


class GrpcTrainingSets:
    """A set is created by the job that builds it, so `create` goes to the store behind the service."""

    def __init__(self, stub: Any, behind: TrainingSets) -> None:
        self._stub = stub
        self.create = behind.create

    async def get(self, project: str, training_set_id: str) -> TrainingSet | None:
        name = f"projects/{project}/trainingSets/{training_set_id}"
        try:
            answer = await self._stub.GetTrainingSet(pb.GetTrainingSetRequest(name=name))
        except NotFound:
            return None
        return _training_set(answer.training_set)

    async def list(
        self,
        project: str,
        *,
        feature_set: str = "",
        text: str = "",
        before: tuple[datetime, str] | None = None,
        limit: int = 100,
    ) -> list[TrainingSet]:
        assert not text
        request = pb.ListTrainingSetsRequest(
            parent=f"projects/{project}",
            page_size=limit,
            filter=f"feature_set={feature_set}" if feature_set else "",
        )
        found: list[TrainingSet] = []
        while len(found) < limit:
            answer = await self._stub.ListTrainingSets(request)
            page = map(_training_set, answer.training_sets)
            found += [s for s in page if before is None or (s.created_at, s.id) < before]
            if not answer.next_page_token:
                break
            request.page_token = answer.next_page_token
        return found[:limit]


def _training_set(m: ts.TrainingSet) -> TrainingSet:
    _, project, _, set_id = m.name.split("/")
    return TrainingSet(
        project=project,
        id=set_id,
        feature_set=m.feature_set,
        view_versions=tuple(m.view_versions),
        spine=_spine(m.spine),
        mode=JoinMode(m.mode),
        uri=m.uri,
        content_hash=m.content_hash,
        row_count=m.row_count,
        label_mean=m.label_mean,
        min_time=micros(m.min_time),
        max_time=micros(m.max_time),
        schema=tuple(Field(f.name, DataType(f.data_type), f.vector_size, f.description) for f in m.schema),
        profile=_profile(m.profile),
        unlabelled_count=m.unlabelled_count,
        created_at=m.created_at.ToDatetime(UTC),
        build_seconds=m.build_duration.ToMicroseconds() / 1_000_000,
        short_feature_names=m.short_feature_names,
        source_versions=dict(m.source_versions),
    )


def _spine(m: ts.Spine) -> Spine:
    if m.HasField("file"):
        return FileSpine(m.file.uri, m.file.timestamp_field, m.file.label_field)
    s = m.source
    return SourceSpine(
        s.source.rpartition("/")[2],
        s.timestamp_field,
        s.label,
        micros(s.start_time),
        micros(s.end_time),
        micros(s.known_before),
    )


def _profile(columns: Sequence[ts.ColumnProfile]) -> tuple[ColumnProfile, ...]:
    return tuple(
        ColumnProfile(
            c.name, DataType(c.data_type), c.count, c.null_count, c.mean, c.stddev, c.min, c.max, tuple(c.edges), tuple(c.bin_counts),
            tuple(c.categories), tuple(c.category_counts), c.other_count,
        )
        for c in columns
    )  # fmt: skip
