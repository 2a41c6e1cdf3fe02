"""Calls of the feature service: definitions, pushes, online reads, jobs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import grpc

from flywheel.connection import Connection, request_id
from flywheel.event_ids import event_ids
from flywheel.online_matrix import OnlineMatrix
from flywheel.tables import to_arrow, to_table
from flywheel_common.grpc.error_details import from_rpc_error
from flywheel_common.value import from_python
from flywheel_protos.feature.v1 import definitions_pb2, feature_pb2, training_set_pb2


class FeatureCalls(Connection):
    """Calls that need several RPCs, packed columns or request ids."""

    async def apply(
        self, definitions: definitions_pb2.Definitions, *, plan: bool = False
    ) -> feature_pb2.ApplyDefinitionsResponse:
        """Applies definitions; with `plan` only compares them."""
        return await self.feature.ApplyDefinitions(
            feature_pb2.ApplyDefinitionsRequest(
                parent=self.parent,
                definitions=definitions,
                validate_only=plan,
                request_id=request_id(),
            )
        )

    async def delete(self, *names: str) -> feature_pb2.ApplyDefinitionsResponse:
        """Deletes definitions by name (`views/facts`, `featureSets/late`). Definitions that read them must be
        deleted in the same call."""
        return await self.feature.ApplyDefinitions(
            feature_pb2.ApplyDefinitionsRequest(
                parent=self.parent, delete_names=[self.full(n) for n in names], request_id=request_id()
            )
        )

    async def lineage(self, name: str) -> feature_pb2.GetLineageResponse:
        """The upstream and downstream resources of `views/facts`, `models/late/versions/7`, …"""
        return await self.feature.GetLineage(
            feature_pb2.GetLineageRequest(name=self.full(name), parent=self.parent)
        )

    async def push(
        self,
        target: str,
        rows: Any,
        schema: Mapping[str, int] | None = None,
        *,
        ids: str | Sequence[str] = (),
        push_id: str = "",
        to: int = feature_pb2.PUSH_TARGET_UNSPECIFIED,
    ) -> feature_pb2.PushFeaturesResponse:
        """Sends rows to a stream source, or to a batch view if `target` begins with `views/` (`to` then
        limits the push to the online or the offline store).

        `ids` of events: one per row, the name of a column that has them, or "auto" (`push_id` and the place
        of the row). Without ids, equal rows count as one event. Retries inside this call send the same ids;
        to repeat a push with `ids="auto"` yourself, give both calls the same `push_id`. By default it is new.
        """
        request = self.push_request(target, rows, schema, ids=ids, push_id=push_id, to=to)
        return await self.feature.PushFeatures(request)

    def push_request(
        self,
        target: str,
        rows: Any,
        schema: Mapping[str, int] | None = None,
        *,
        ids: str | Sequence[str] = (),
        push_id: str = "",
        to: int = feature_pb2.PUSH_TARGET_UNSPECIFIED,
    ) -> feature_pb2.PushFeaturesRequest:
        """The request of one push, for `push_stream`; the arguments are those of `push`.

        Raises InvalidColumn or WrongType for a column of ids that is unknown, has a null or has another type.
        """
        table = to_arrow(rows)
        name = f"{self.parent}/{target}" if target.startswith("views/") else self.path("sources", target)
        return feature_pb2.PushFeaturesRequest(
            target=name,
            rows=to_table(table, schema),
            event_ids=event_ids(table, ids, push_id or request_id()),
            push_target=to,  # type: ignore[arg-type]
        )

    async def push_stream(
        self, pushes: AsyncIterable[feature_pb2.PushFeaturesRequest]
    ) -> AsyncIterator[feature_pb2.StreamPushFeaturesResponse]:
        """One response per push, in order, when its rows are durable. A refused push has `error` set; the
        others are not affected. The service reads new pushes only as fast as it responds."""

        async def wrapped() -> AsyncIterator[feature_pb2.StreamPushFeaturesRequest]:
            async for push in pushes:
                yield feature_pb2.StreamPushFeaturesRequest(push=push)

        try:
            async for answer in self.feature.StreamPushFeatures(wrapped()):
                yield answer
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error

    async def wait_applied(
        self, offsets: Sequence[feature_pb2.AppliedOffset], *, within: float = 60.0
    ) -> None:
        """Waits until pushed rows are visible online: every offset is applied.

        Raises TimeoutError, which names the partitions that are not.
        """
        wanted = {(o.source, o.partition): o.next_offset for o in offsets}
        try:
            async with asyncio.timeout(within) as limit:
                while wanted:
                    request = feature_pb2.GetFreshnessRequest(parent=self.parent)
                    answer = await self.feature.GetFreshness(request)
                    for fresh in answer.freshness:
                        for applied in fresh.applied:
                            key = (applied.source or fresh.name, applied.partition)
                            if applied.next_offset >= wanted.get(key, float("inf")):
                                del wanted[key]
                    if wanted:
                        await asyncio.sleep(0.003)
        except TimeoutError:
            if not limit.expired():
                raise
            missing = ", ".join(f"{source}/{partition}" for source, partition in sorted(wanted))
            raise TimeoutError(f"Not applied within {within:g} s: {missing}.") from None

    async def online_features(
        self,
        feature_set: str,
        entities: Any,
        request_fields: Any = None,
        *,
        as_of: datetime | None = None,
        readable: bool = False,
    ) -> feature_pb2.GetOnlineFeaturesResponse:
        """Feature values of one or more entities. `entities` is a frame or a dict join key → values."""
        layout = feature_pb2.ANSWER_LAYOUT_ROWS if readable else feature_pb2.ANSWER_LAYOUT_COLUMNS
        return await self._read_online(feature_set, entities, request_fields, as_of, layout)

    async def online_matrix(
        self,
        feature_set: str,
        entities: Any,
        request_fields: Any = None,
        *,
        as_of: datetime | None = None,
    ) -> OnlineMatrix:
        """Numeric features of one or more entities as one float32 matrix with statuses, for models.

        Raises InvalidArgument WRONG_TYPE for a feature set with texts, times or lists.
        """
        layout = feature_pb2.ANSWER_LAYOUT_TENSOR
        return OnlineMatrix.of(await self._read_online(feature_set, entities, request_fields, as_of, layout))

    async def _read_online(
        self,
        feature_set: str,
        entities: Any,
        request_fields: Any,
        as_of: datetime | None,
        layout: feature_pb2.AnswerLayout,
    ) -> feature_pb2.GetOnlineFeaturesResponse:
        request = feature_pb2.GetOnlineFeaturesRequest(
            feature_set=self.path("featureSets", feature_set), entities=to_table(entities), layout=layout
        )
        if request_fields is not None:
            request.request_fields.CopyFrom(to_table(request_fields))
        if as_of is not None:
            request.as_of.FromDatetime(as_of)
        return await self.feature.GetOnlineFeatures(request)

    async def materialize(
        self,
        view: str,
        progress: Callable[[feature_pb2.Job], None] | None = None,
        *,
        start: datetime | None = None,
        end: datetime | None = None,
        rows_per_second: int = 0,
    ) -> feature_pb2.Job:
        """Writes rows of a batch view to the online store and waits for the job: the range of event times
        from `start` if given, else the rows that are new."""
        request = feature_pb2.MaterializeViewRequest(
            view=self.path("views", view), request_id=request_id(), rows_per_second=rows_per_second
        )
        if start is not None:
            request.start_time.FromDatetime(start)
        if end is not None:
            request.end_time.FromDatetime(end)
        return await self._feature_job((await self.feature.MaterializeView(request)).job, progress)

    async def rebuild_online_store(
        self, progress: Callable[[feature_pb2.Job], None] | None = None
    ) -> feature_pb2.Job:
        """Fills an empty online store from the archives on S3 and waits for the job."""
        request = feature_pb2.RebuildOnlineStoreRequest(parent=self.parent, request_id=request_id())
        return await self._feature_job((await self.feature.RebuildOnlineStore(request)).job, progress)

    async def erase_entity(
        self,
        entity: str,
        join_keys: Mapping[str, Any],
        progress: Callable[[feature_pb2.Job], None] | None = None,
    ) -> feature_pb2.EraseReport:
        """Erases one entity from all stores and waits for the report."""
        request = feature_pb2.EraseEntityRequest(
            entity=self.path("entities", entity),
            join_keys={k: from_python(v) for k, v in join_keys.items()},
            request_id=request_id(),
        )
        return (await self._feature_job((await self.feature.EraseEntity(request)).job, progress)).erase_report

    async def _feature_job(
        self, job: feature_pb2.Job, progress: Callable[[feature_pb2.Job], None] | None
    ) -> feature_pb2.Job:
        watched = self.feature.WatchJob(feature_pb2.WatchJobRequest(name=job.name))
        ended: feature_pb2.Job = await self.wait(watched, "job", progress)
        return ended

    async def build_training_set(
        self,
        feature_set: str,
        spine: training_set_pb2.Spine,
        *,
        mode: int = training_set_pb2.JOIN_MODE_POINT_IN_TIME,
        full_feature_names: bool = True,
        compute: int = training_set_pb2.COMPUTE_UNSPECIFIED,
        progress: Callable[[feature_pb2.Job], None] | None = None,
    ) -> training_set_pb2.TrainingSet:
        """Joins a spine with a feature set and waits for the manifest.

        The set keeps the spine's own columns, named in `extra_columns`, and the row order of a file spine.
        A column of a file that cannot be kept is refused by name; `ignored_columns` leaves it out.

        `full_feature_names=False` names columns `feature` instead of `view__feature`, for use outside of
        Flywheel: models are trained on the full names. `compute` sets where the join runs; by default its
        size decides.
        """
        request = feature_pb2.BuildTrainingSetRequest(
            parent=self.parent,
            feature_set=self.path("featureSets", feature_set),
            spine=spine,
            mode=mode,  # type: ignore[arg-type]
            short_feature_names=not full_feature_names,
            compute=compute,  # type: ignore[arg-type]
            request_id=request_id(),
        )
        job = (await self.feature.BuildTrainingSet(request)).job
        job = await self.wait(
            self.feature.WatchJob(feature_pb2.WatchJobRequest(name=job.name)),
            "job",
            progress,
        )
        return (
            await self.feature.GetTrainingSet(feature_pb2.GetTrainingSetRequest(name=job.training_set))
        ).training_set

    async def check_skew(self, predictions_uri: str, *, sample_limit: int = 0) -> feature_pb2.SkewReport:
        """Recomputes logged online features offline, compares them and waits for the report."""
        request = feature_pb2.CheckSkewRequest(
            parent=self.parent,
            predictions_uri=predictions_uri,
            sample_limit=sample_limit,
            request_id=request_id(),
        )
        job = (await self.feature.CheckSkew(request)).job
        return (
            await self.wait(self.feature.WatchJob(feature_pb2.WatchJobRequest(name=job.name)), "job")
        ).skew_report
