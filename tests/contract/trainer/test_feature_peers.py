"""Contract tests for the trainer's view of the feature service: in memory, and over gRPC."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

import pytest

from flywheel_common.errors import InvalidArgument, NotFound, Unavailable
from flywheel_job.launch import Column
from flywheel_protos.feature.v1 import feature_pb2_grpc, training_set_pb2
from flywheel_trainer.fakes.feature import MemoryFeature
from flywheel_trainer.jobs.errors import ShortFeatureNames, UnknownTrainingSet
from flywheel_trainer.jobs.job import JobState
from flywheel_trainer.jobs.ports import TrainingSet
from flywheel_trainer.pipelines.ports import FeaturePeer
from flywheel_trainer.store.grpc.feature import GrpcFeature
from tests.support.peers.trainer import FEATURE_SET, LINEAGE, TRAINING_SET, FeatureServer, serve

SPINE = {"file": {"uri": "s3://b/spine.parquet"}}
URI = "s3://b/sets/one/"
BUILT = TrainingSet(
    name=TRAINING_SET,
    uri=URI,
    columns=(
        Column("v__x", "FLOAT64"),
        Column("v__z", "FLOAT64"),
        Column("v__c", "STRING"),
        Column("v__b", "BOOL"),
    ),
    row_count=7,
    content_hash="f" * 64,
    feature_set=FEATURE_SET,
    extra_columns=(Column("order__weight", "FLOAT64"),),
    categories={"v__c": ("AA", "BB")},
)


@dataclass
class Feature:
    peer: FeaturePeer
    """Builds BUILT of FEATURE_SET; the job is RUNNING for its first read."""
    fail_builds: Callable[[], None]
    use_short_names: Callable[[], None]
    use_naive_joins: Callable[[], None]
    shut_down: Callable[[], Awaitable[None]]


def memory_feature() -> Feature:
    memory = MemoryFeature({FEATURE_SET: TRAINING_SET}, running_reads=1)
    memory.known[TRAINING_SET] = BUILT
    memory.edges[FEATURE_SET] = LINEAGE

    def fail_builds() -> None:
        memory.failure = "NO_ROWS: The spine is empty."

    def use_naive_joins() -> None:
        memory.known[TRAINING_SET] = replace(BUILT, naive=True)

    async def shut_down() -> None:
        memory.down = True

    return Feature(memory, fail_builds, lambda: memory.short.add(TRAINING_SET), use_naive_joins, shut_down)


async def grpc_feature(stack: AsyncExitStack) -> Feature:
    server = FeatureServer(URI)
    server.running_reads = 1

    def fail_builds() -> None:
        server.failure = ("NO_ROWS", "The spine is empty.")

    def use_short_names() -> None:
        server.short = True

    def use_naive_joins() -> None:
        server.mode = training_set_pb2.JOIN_MODE_NAIVE_LATEST

    channel, shut_down = await serve(stack, feature_pb2_grpc.add_FeatureServiceServicer_to_server, server)
    return Feature(GrpcFeature(channel), fail_builds, use_short_names, use_naive_joins, shut_down)


@pytest.fixture(params=["memory", "grpc"])
async def feature(request: pytest.FixtureRequest) -> AsyncIterator[Feature]:
    async with AsyncExitStack() as stack:
        yield memory_feature() if request.param == "memory" else await grpc_feature(stack)


async def test_a_job_builds_a_training_set_and_names_it_when_done(feature: Feature) -> None:
    job = await feature.peer.build("default", FEATURE_SET, SPINE, "run-1:training_set")
    assert (JobState.RUNNING, "", "") == await feature.peer.job(job)
    assert (JobState.SUCCEEDED, TRAINING_SET, "") == await feature.peer.job(job)
    assert BUILT == await feature.peer.get(TRAINING_SET)


async def test_a_repeated_build_request_returns_the_same_job(feature: Feature) -> None:
    first = await feature.peer.build("default", FEATURE_SET, SPINE, "run-1:training_set")
    assert first == await feature.peer.build("default", FEATURE_SET, SPINE, "run-1:training_set")
    other = {"file": {"uri": "s3://b/o"}}
    with pytest.raises(InvalidArgument) as reused:
        await feature.peer.build("default", FEATURE_SET, other, "run-1:training_set")
    assert "REQUEST_ID_REUSED" == reused.value.reason


async def test_a_failed_build_has_its_error_in_one_line(feature: Feature) -> None:
    feature.fail_builds()
    job = await feature.peer.build("default", FEATURE_SET, SPINE, "r")
    await feature.peer.job(job)
    assert (JobState.FAILED, "", "NO_ROWS: The spine is empty.") == await feature.peer.job(job)


async def test_unknown_resources_are_not_found(feature: Feature) -> None:
    with pytest.raises(NotFound):
        await feature.peer.build("default", "projects/default/featureSets/none/versions/1", SPINE, "r")
    with pytest.raises(NotFound) as job:
        await feature.peer.job("projects/default/jobs/none")
    assert "UNKNOWN_JOB" == job.value.reason
    with pytest.raises(UnknownTrainingSet):
        await feature.peer.get("projects/default/trainingSets/none")
    with pytest.raises(NotFound):
        await feature.peer.upstream("projects/default/featureSets/none/versions/1")


async def test_the_lineage_of_a_feature_set_reaches_its_sources(feature: Feature) -> None:
    assert LINEAGE == tuple(await feature.peer.upstream(FEATURE_SET))


async def test_naive_joins_are_marked_and_short_names_rejected(feature: Feature) -> None:
    feature.use_naive_joins()
    assert (await feature.peer.get(TRAINING_SET)).naive
    feature.use_short_names()
    with pytest.raises(ShortFeatureNames):
        await feature.peer.get(TRAINING_SET)


async def test_every_method_raises_unavailable_while_the_service_is_down(feature: Feature) -> None:
    await feature.shut_down()
    for call in (
        feature.peer.build("default", FEATURE_SET, SPINE, "r"),
        feature.peer.job("projects/default/jobs/build-1"),
        feature.peer.get(TRAINING_SET),
        feature.peer.upstream(FEATURE_SET),
    ):
        with pytest.raises(Unavailable) as unavailable:
            await call
        assert "FEATURE_UNAVAILABLE" == unavailable.value.reason
