"""Which requests to the object store an attempt of a job gets."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import grpc
import pytest

from flywheel_common.granted.access import Access, ObjectMethod, ObjectRequest
from flywheel_common.granted.errors import ForeignObject, InvalidObjectRequest
from flywheel_common.granted.tokens import AttemptTokens
from flywheel_job.model_file import BINARY, ModelFile
from flywheel_job.recipes.sequence import params as sequence
from flywheel_job.tuning.settings import Population, Tpe
from flywheel_protos.trainer.v1 import object_access_pb2
from flywheel_protos.types.v1 import object_access_pb2 as pb
from flywheel_trainer.jobs.code import CodeRecipe
from flywheel_trainer.jobs.train import TrainKind, TrainSettings
from flywheel_trainer.jobs.train_spec import TrainSpec
from flywheel_trainer.jobs.tune import TuneKind
from flywheel_trainer.jobs.tune_spec import TuneSpec
from tests.support.builders import trainer as build
from tests.support.builders.trainer import TRAINING_SET
from tests.support.granted_addresses import refused_addresses
from tests.support.servers.trainer import MemoryTrainer

DIGEST = "ab" * 32
ACCESS = Access(
    reads=("s3://sets/p/one/", "s3://b/sources/x"),
    writes=("s3://b/jobs/p/job-1/attempts/2", "s3://b/jobs/p/job-1/checkpoints"),
    artifacts="s3://b/artifacts",
)


def allowed(method: str, uri: str, **fields: Any) -> bool:
    try:
        ACCESS.check(ObjectRequest(ObjectMethod(method), uri, **fields))
    except ForeignObject:
        return False
    return True


@pytest.mark.parametrize(
    ("uri", "reads", "writes"),
    [
        ("s3://sets/p/one/part-0.parquet", True, False),
        ("s3://b/sources/x", True, False),
        ("s3://b/jobs/p/job-1/attempts/2/outcome.json", True, True),
        ("s3://b/jobs/p/job-1/checkpoints/1/a", True, True),
        # The neighbours of each address.
        ("s3://sets/p/one-more/part-0.parquet", False, False),
        ("s3://other/p/one/part-0.parquet", False, False),
        ("s3://b/sources/xy", False, False),
        ("s3://b/jobs/p/job-1/attempts/20/outcome.json", False, False),
        ("s3://b/jobs/p/job-1/attempts/1/outcome.json", False, False),
        ("s3://b/jobs/p/job-10/checkpoints/1/a", False, False),
        ("s3://b/jobs/q/job-1/checkpoints/1/a", False, False),
        ("s3://b/artifacts/ab/" + DIGEST, False, False),
    ],
)
def test_an_attempt_reads_its_inputs_and_writes_its_own_files(uri: str, reads: bool, writes: bool) -> None:
    for method in ("GET", "HEAD"):
        assert reads == allowed(method, uri)
    assert writes == allowed("PUT", uri)
    assert writes == allowed("DELETE", uri)
    assert writes == allowed("CREATE_UPLOAD", uri)
    assert writes == allowed("UPLOAD_PART", uri, upload_id="u", part_number=1)


def test_only_folders_of_the_attempt_are_listed() -> None:
    assert allowed("LIST", "s3://sets/p/one/")
    assert allowed("LIST", "s3://b/jobs/p/job-1/checkpoints/")
    assert not allowed("LIST", "s3://sets/p/")
    assert not allowed("LIST", "s3://b/jobs/p/job-1/attempts/")


def test_a_copy_needs_both_of_its_objects() -> None:
    own, foreign = "s3://b/jobs/p/job-1/checkpoints/a", "s3://b/jobs/q/job-9/checkpoints/a"
    assert allowed("COPY", own, source_uri="s3://sets/p/one/part")
    assert not allowed("COPY", own, source_uri=foreign)
    assert not allowed("COPY", foreign, source_uri=own)


def test_an_artifact_is_written_under_its_own_digest_only() -> None:
    uri = f"s3://b/artifacts/ab/{DIGEST}"
    assert allowed("PUT", uri, sha256=DIGEST)
    assert not allowed("PUT", uri, sha256="cd" * 32)
    assert not allowed("CREATE_UPLOAD", uri, sha256=DIGEST)
    assert not allowed("DELETE", uri, sha256=DIGEST)


@pytest.mark.parametrize(
    "request_",
    [
        ObjectRequest(ObjectMethod.GET, ""),
        ObjectRequest(ObjectMethod.GET, "http://sets/p/one/a"),
        ObjectRequest(ObjectMethod.GET, "s3://sets/p/one/../../q/two"),
        ObjectRequest(ObjectMethod.GET, "s3://sets/p/one//a"),
        ObjectRequest(ObjectMethod.GET, "s3://sets/p/one/a\0"),
        ObjectRequest(ObjectMethod.LIST, "s3://sets/"),
        ObjectRequest(ObjectMethod.PUT, "s3://b/jobs/p/job-1/checkpoints/a", sha256="no digest"),
        ObjectRequest(ObjectMethod.UPLOAD_PART, "s3://b/jobs/p/job-1/checkpoints/a", upload_id="u"),
        ObjectRequest(ObjectMethod.COMPLETE_UPLOAD, "s3://b/jobs/p/job-1/checkpoints/a"),
    ],
)
def test_a_request_that_is_not_well_formed_is_refused(request_: ObjectRequest) -> None:
    with pytest.raises(InvalidObjectRequest):
        ACCESS.check(request_)


async def test_callers_without_the_token_of_an_active_attempt_get_nothing(trainer: MemoryTrainer) -> None:
    async def refusal(token: str) -> tuple[grpc.StatusCode, str]:
        request = object_access_pb2.SignObjectRequestsRequest(
            requests=[pb.ObjectRequest(method=pb.OBJECT_METHOD_GET, uri="s3://b/x")]
        )
        metadata = [("authorization", f"Bearer {token}")] if token else []
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await trainer.stub.SignObjectRequests(request, metadata=metadata)
        return caught.value.code(), str(caught.value.details())

    code, _ = await refusal("")
    assert grpc.StatusCode.PERMISSION_DENIED == code
    code, text = await refusal(AttemptTokens(b"k" * 32).issue("job-1-1"))
    assert grpc.StatusCode.FAILED_PRECONDITION == code
    assert "has ended" in text


def test_a_tabular_job_reads_its_warm_start_and_its_teacher() -> None:
    kind = TrainKind(None, None, None, None, TrainSettings("b", "python", "", 1.0))  # type: ignore[arg-type]
    teacher = ModelFile("t", "s3://b/artifacts/aa/teacher", DIGEST, (), "SCORE", BINARY)
    details = {
        "uri": "s3://sets/p/one/",
        "columns": [],
        "warm_start": {"version": "v", "uri": "s3://b/artifacts/bb/weights", "sha256": DIGEST},
        "teacher": teacher.to_json(),
    }
    launch = kind.launch(build.job(), details, 1)
    expected = {"s3://sets/p/one/", "s3://b/artifacts/aa/teacher", "s3://b/artifacts/bb/weights"}
    assert expected == set(launch.reads)
    assert refused_addresses(build.job().name, 1, launch) == []
    # The neighbour of an attempt may not use its files.
    assert "s3://b/jobs/p/job-1/attempts/1/outcome.json" in refused_addresses(build.job().name, 2, launch)


@pytest.mark.parametrize("algorithm", [None, Tpe(), Population(4, 1, 3)])
def test_a_transformer_and_its_trials_read_their_rows(algorithm: Any) -> None:
    kind = TrainKind(None, None, None, None, TrainSettings("b", "python", "", 1.0))  # type: ignore[arg-type]
    code = CodeRecipe(sequence.TRAIN, training_sets={"train": TRAINING_SET}, export=sequence.EXPORT)
    spec = TrainSpec("late", "", code=code)
    details = {"data": {"train": {"uri": "s3://sets/p/one/", "columns": [], "content_hash": ""}}}
    if algorithm is None:
        job = replace(build.job(), spec=spec)
        launch = kind.launch(job, details, 2)
    else:
        settings = replace(build.TUNE_SETTINGS, algorithm=algorithm)
        job = replace(build.tune_job(), spec=TuneSpec(spec, settings))
        launch = TuneKind(kind).launch(job, details, 2)
    assert refused_addresses(job.name, 2, launch) == []
    assert "s3://sets/p/one/" in launch.reads
