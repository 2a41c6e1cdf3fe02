"""A mutation repeated with its request_id gets the first answer; another body with that id is refused."""

from __future__ import annotations

from typing import Any

import pytest

import flywheel as fw
from flywheel_common.errors import InvalidArgument, NotFound
from flywheel_protos.feature.v1 import feature_pb2 as pb
from flywheel_protos.feature.v1 import training_set_pb2 as ts
from flywheel_protos.types.v1 import job_pb2
from tests.support.servers.feature import PARENT


@pytest.fixture
def environment(environment: dict[str, str]) -> dict[str, str]:
    """Settings with which no job ever starts, so that jobs stay unchanged during a test."""
    return {**environment, "FLYWHEEL_FEATURE_JOB_CONCURRENCY": "0"}


place = fw.Entity("place", {"code": fw.STRING})
SCHEMA = {"code": fw.STRING, "at": fw.TIMESTAMP, "height": fw.FLOAT64}
heights = fw.ParquetSource("heights", SCHEMA, timestamp="at", uri="s3://nowhere/heights/")
facts = fw.BatchView("facts", place, heights, {"height": fw.FLOAT64})
tall = fw.FeatureSet("tall", ["facts:height"])


async def test_a_request_id_identifies_one_request_of_its_method(client: fw.Client) -> None:
    stub: Any = client.feature
    definitions = fw.compile_definitions([facts, tall], "default")
    none = fw.compile_definitions([], "default")
    view = f"{PARENT}/views/facts"
    await stub.ApplyDefinitions(pb.ApplyDefinitionsRequest(parent=PARENT, definitions=definitions))
    uri = "s3://nowhere/predictions/"
    cases: list[tuple[Any, Any, Any]] = [
        (
            stub.ApplyDefinitions,
            pb.ApplyDefinitionsRequest(parent=PARENT, definitions=definitions, request_id="one"),
            pb.ApplyDefinitionsRequest(parent=PARENT, definitions=none, request_id="one"),
        ),
        (
            stub.MaterializeView,
            pb.MaterializeViewRequest(view=view, request_id="one"),
            pb.MaterializeViewRequest(parent=PARENT, request_id="one"),
        ),
        (
            stub.CheckSkew,
            pb.CheckSkewRequest(parent=PARENT, predictions_uri=uri, request_id="one"),
            pb.CheckSkewRequest(parent=PARENT, predictions_uri=uri, sample_limit=1, request_id="one"),
        ),
    ]
    for method, first, other in cases:
        answer = await method(first)
        again = await method(first)
        if hasattr(answer, "job"):
            assert answer.job.name == again.job.name
        else:
            assert answer == again
        with pytest.raises(InvalidArgument) as refused:
            await method(other)
        assert "REQUEST_ID_REUSED" == refused.value.reason, other


async def test_a_repeated_cancellation_gets_the_first_answer(client: fw.Client) -> None:
    stub: Any = client.feature
    await stub.ApplyDefinitions(
        pb.ApplyDefinitionsRequest(parent=PARENT, definitions=fw.compile_definitions([facts], "default"))
    )
    started = await stub.MaterializeView(pb.MaterializeViewRequest(view=f"{PARENT}/views/facts"))
    request = pb.CancelJobRequest(name=started.job.name, request_id="one")
    first = await stub.CancelJob(request)
    assert job_pb2.JOB_STATE_CANCELLED == first.job.state
    assert first == await stub.CancelJob(request)
    with pytest.raises(InvalidArgument) as refused:
        await stub.CancelJob(pb.CancelJobRequest(name=f"{PARENT}/jobs/other", request_id="one"))
    assert "REQUEST_ID_REUSED" == refused.value.reason


async def test_a_repeated_build_returns_the_first_job_after_definitions_changed(
    client: fw.Client,
) -> None:
    stub: Any = client.feature
    await client.apply(fw.compile_definitions([facts, tall], "default"))
    source = ts.SourceSpine(source=f"{PARENT}/sources/heights", timestamp_field="at", label="height > 1")
    source.start_time.FromSeconds(1_357_000_000)
    source.end_time.FromSeconds(1_358_000_000)
    wanted = pb.BuildTrainingSetRequest(
        parent=PARENT,
        feature_set=f"{PARENT}/featureSets/tall",
        spine=ts.Spine(source=source),
        request_id="one",
    )
    first = await stub.BuildTrainingSet(wanted)
    assert first.job.training_set.startswith(f"{PARENT}/trainingSets/ts-"), "the server chooses the id"
    assert first == await stub.BuildTrainingSet(wanted)
    later = pb.BuildTrainingSetRequest()
    later.CopyFrom(wanted)
    later.spine.source.end_time.FromSeconds(1_359_000_000)
    others = [
        later,
        _changed(wanted, mode=ts.JOIN_MODE_NAIVE_LATEST),
        _changed(wanted, training_set_id="mine"),
        _changed(wanted, feature_set=f"{PARENT}/featureSets/tall/versions/1"),
    ]
    for other in others:
        with pytest.raises(InvalidArgument) as refused:
            await stub.BuildTrainingSet(other)
        assert "REQUEST_ID_REUSED" == refused.value.reason, other
    await client.delete("featureSets/tall")
    assert first == await stub.BuildTrainingSet(wanted)
    with pytest.raises(NotFound):
        await stub.BuildTrainingSet(_changed(wanted, request_id="two"))
    jobs = (await stub.ListJobs(pb.ListJobsRequest(parent=PARENT))).jobs
    assert [first.job.name] == [job.name for job in jobs]
    assert [first.job] == list(jobs), "the job did not change"


def _changed(request: pb.BuildTrainingSetRequest, **fields: Any) -> pb.BuildTrainingSetRequest:
    changed = pb.BuildTrainingSetRequest()
    changed.CopyFrom(request)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed
