"""TRAIN jobs with the user's own code: upload of the archive, validation, and what is launched."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import grpc
import pytest

from flywheel_common.grpc.error_details import from_rpc_error
from flywheel_job.launch import Column, LaunchSpec, Resources, Source
from flywheel_job.tuning.settings import Direction, FloatRange, Objective, RandomSearch, TuneSettings
from flywheel_protos.trainer.v1 import trainer_pb2 as pb
from flywheel_trainer.encoding.specs import spec_from_json, spec_to_json, train_spec_from_proto
from flywheel_trainer.jobs.errors import InvalidSpec
from flywheel_trainer.jobs.sources import source_key
from flywheel_trainer.jobs.train import TrainKind, TrainSettings
from flywheel_trainer.jobs.train_spec import check_spec
from flywheel_trainer.jobs.tune import TuneKind
from flywheel_trainer.jobs.tune_spec import TuneSpec
from tests.support.builders import trainer as build
from tests.support.builders.trainer import TRAINING_SET
from tests.support.builders.trainer_requests import P
from tests.support.servers.trainer import MemoryTrainer

ARCHIVE = b"an archive" * 100
SHA256 = hashlib.sha256(ARCHIVE).hexdigest()


def target(sha256: str = SHA256, size: int = len(ARCHIVE), parent: str = P) -> pb.UploadSourceRequest:
    described = pb.UploadSourceRequest.Target(parent=parent, sha256=sha256, size_bytes=size)
    return pb.UploadSourceRequest(target=described)


def data(content: bytes = ARCHIVE) -> pb.UploadSourceRequest:
    return pb.UploadSourceRequest(data=content)


async def upload(trainer: MemoryTrainer, *messages: pb.UploadSourceRequest) -> Any:
    async def parts() -> AsyncIterator[pb.UploadSourceRequest]:
        for message in messages:
            yield message

    return await trainer.stub.UploadSource(parts())


def submit(**fields: Any) -> pb.SubmitJobRequest:
    code = pb.CodeRecipe(
        **{
            "function": "train.py:train",
            "source_sha256": SHA256,
            "params_json": '{"epochs": 3, "rate": 0.5}',
            "training_sets": {"train": TRAINING_SET},
            "environment": {"NCCL_DEBUG": "INFO"},
            "provenance": {"commit": "c0ffee"},
            "seed": 7,
        }
        | fields
    )
    return pb.SubmitJobRequest(
        parent=P, job=pb.Job(train=pb.TrainSpec(experiment="late", workers=2, code=code))
    )


async def reason(call: Any) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        await call
    error = from_rpc_error(caught.value)
    return f"{error.code.name} {error.reason}"


async def test_an_archive_is_stored_under_its_digest_once(trainer: MemoryTrainer) -> None:
    for _ in range(2):
        answer = await upload(trainer, target(), data(ARCHIVE[:300]), data(ARCHIVE[300:]))
        assert (answer.sha256, answer.size_bytes) == (SHA256, len(ARCHIVE))
    assert await trainer.ports.objects.get(source_key(SHA256)) == ARCHIVE


@pytest.mark.parametrize(
    "messages",
    [
        (),
        (data(),),
        (target(), target()),
        (target(), data(ARCHIVE[:-1])),
        (target(), data(ARCHIVE + b"1")),
        (target(), data(b"x" * len(ARCHIVE))),
        (target(sha256="../../etc"), data()),
        (target(size=0), data()),
        (target(size=(64 << 20) + 1), data()),
    ],
    ids=["nothing", "no target", "two targets", "short", "long", "other", "path", "empty", "huge"],
)
async def test_an_archive_that_is_not_what_was_announced_is_refused(
    trainer: MemoryTrainer, messages: tuple[pb.UploadSourceRequest, ...]
) -> None:
    assert await reason(upload(trainer, *messages)) == "INVALID_ARGUMENT INVALID_SOURCE"
    assert [info.key async for info in trainer.ports.objects.list("sources/")] == []


async def test_a_job_with_code_is_stored_as_it_was_submitted(trainer: MemoryTrainer) -> None:
    await upload(trainer, target(), data())
    job = (await trainer.stub.SubmitJob(submit())).job
    assert job.train.code == submit().job.train.code
    assert job.train.WhichOneof("recipe") == "code"
    again = (await trainer.stub.GetJob(pb.GetJobRequest(name=job.name))).job
    assert again.train == job.train


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"source_sha256": "0" * 64}, "NOT_FOUND UNKNOWN_SOURCE"),
        ({"training_sets": {"train": f"{P}/trainingSets/none"}}, "NOT_FOUND UNKNOWN_TRAINING_SET"),
        ({"function": "train.py"}, "INVALID_ARGUMENT INVALID_SPEC"),
        ({"function": "../train.py:train"}, "INVALID_ARGUMENT INVALID_SPEC"),
        ({"function": "os:system"}, "INVALID_ARGUMENT INVALID_SPEC"),
        ({"function": "os:system", "source_sha256": ""}, "INVALID_ARGUMENT INVALID_SPEC"),
        ({"function": ""}, "INVALID_ARGUMENT INVALID_SPEC"),
        ({"check": "train"}, "INVALID_ARGUMENT INVALID_SPEC"),
        ({"source_sha256": "abc"}, "INVALID_ARGUMENT INVALID_SPEC"),
        ({"params_json": "[1]"}, "INVALID_ARGUMENT INVALID_SPEC"),
        ({"params_json": "{"}, "INVALID_ARGUMENT INVALID_SPEC"),
        ({"seed": 1 << 32}, "INVALID_ARGUMENT INVALID_SPEC"),
        ({"environment": {"AWS_ACCESS_KEY_ID": "x"}}, "INVALID_ARGUMENT INVALID_SPEC"),
        ({"requirements": "../lock"}, "INVALID_ARGUMENT INVALID_SPEC"),
        ({"requirements": "/etc/lock"}, "INVALID_ARGUMENT INVALID_SPEC"),
        ({"requirements": "a;b"}, "INVALID_ARGUMENT INVALID_SPEC"),
        ({"environment": {"aws_region": "x"}}, "INVALID_ARGUMENT INVALID_SPEC"),
        ({"environment": {"A=B": "x"}}, "INVALID_ARGUMENT INVALID_SPEC"),
        ({"provenance": {"diff": "x" * 300_000}}, "INVALID_ARGUMENT INVALID_SPEC"),
    ],
)
async def test_wrong_fields_of_a_code_job_are_refused(
    trainer: MemoryTrainer, fields: dict[str, Any], expected: str
) -> None:
    await upload(trainer, target(), data())
    assert await reason(trainer.stub.SubmitJob(submit(**fields))) == expected


def test_a_code_job_names_no_other_training_set() -> None:
    spec = train_spec_from_proto(submit().job.train)
    check_spec(spec)
    with pytest.raises(InvalidSpec, match="must be empty with `code`"):
        check_spec(replace(spec, training_set=TRAINING_SET))


def test_the_stored_form_of_a_code_job_is_complete() -> None:
    spec = train_spec_from_proto(submit().job.train)
    assert spec_from_json(json.loads(json.dumps(spec_to_json(spec, "p")))) == spec


@pytest.mark.parametrize("tuned", [False, True])
def test_a_job_with_requirements_starts_in_its_environment(tuned: bool) -> None:
    settings = TrainSettings("b", "python", "trainer:7103", 1.0)
    train = TrainKind(None, None, None, None, settings)  # type: ignore[arg-type]
    spec = train_spec_from_proto(submit(requirements="env/requirements.lock").job.train)
    details: dict[str, Any] = {"data": {"train": {"uri": "s3://b/t/", "columns": [], "content_hash": ""}}}
    if tuned:
        tuning = TuneSettings(
            {"rate": FloatRange(0.1, 1)},
            (Objective("loss", Direction.MINIMIZE),),
            RandomSearch(),
            max_trials=1,
        )
        launch = TuneKind(train).launch(replace(build.job(), spec=TuneSpec(spec, tuning)), details, 1)
    else:
        launch = train.launch(replace(build.job(), spec=spec), details, 1)
    driver = "flywheel_job.tuning" if tuned else "flywheel_job"
    uri = "s3://b/jobs/p/job-1/attempts/1/spec.json"
    assert launch.command == ("python", "-m", "flywheel_job.environments", driver, uri)
    assert b'"requirements": "env/requirements.lock"' in launch.files["spec.json"]
    assert "s3://b/t/" in launch.reads


def test_the_launched_specification_has_code_data_and_provenance() -> None:
    kind = TrainKind(None, None, None, None, TrainSettings("b", "python", "trainer:7103", 1.0))  # type: ignore[arg-type]
    job = replace(build.job(), spec=train_spec_from_proto(submit().job.train))
    details = {
        "data": {"train": {"uri": "s3://b/t/", "columns": [["v__a", "FLOAT64"]], "content_hash": "ab"}}
    }
    launch = kind.launch(job, details, 2)
    spec = LaunchSpec.from_json(launch.files["spec.json"])
    assert (spec.function, spec.attempt, spec.workers, spec.seed) == ("train.py:train", 2, 2, 7)
    assert spec.source == Source(f"s3://b/{source_key(SHA256)}", SHA256)
    assert spec.params == {"epochs": 3, "rate": 0.5}
    assert spec.data["train"].columns == (Column("v__a", "FLOAT64"),)
    assert spec.data["train"].name == TRAINING_SET
    assert spec.resources == Resources(1.0, 0, 0, "", {"NCCL_DEBUG": "INFO"})
    assert spec.provenance == {"commit": "c0ffee"}
    assert spec.checkpoint_uri == "s3://b/jobs/p/job-1/checkpoints"
    assert spec.outcome_uri == "s3://b/jobs/p/job-1/attempts/2/outcome.json"
    assert launch.command == ("python", "-m", "flywheel_job", "s3://b/jobs/p/job-1/attempts/2/spec.json")
    assert set(launch.reads) == {"s3://b/t/", f"s3://b/{source_key(SHA256)}"}
    assert kind.progress(job, {"loss": 41, "accuracy": 40}) == {"done": 41, "total": 0, "unit": "step"}


def recipe(workers: int = 4, **params: Any) -> pb.SubmitJobRequest:
    """A job of the sequence recipe."""
    request = submit(
        function="flywheel_job.recipes.sequence.training:train",
        source_sha256="",
        params_json=json.dumps({"vocabulary": 32, "batch_size": 16} | params),
    )
    request.job.train.workers = workers
    return request


@pytest.mark.parametrize(
    ("workers", "params", "numbers"),
    [
        (3, {"strategy": "ddp+pipeline", "stages": 2}, "3 workers make no pipelines of 2 stages"),
        (4, {"strategy": "ddp+pipeline", "stages": 0, "heads": 3, "width": 64}, "width 64 .* 3 heads"),
        (4, {"strategy": "tensor", "heads": 2}, "2 heads cannot be divided among 4 workers"),
        (4, {"strategy": "pipeline", "layers": 3}, "3 layers cannot be divided into 4 stages"),
        (4, {"strategy": "pipeline", "stages": 2}, "all 4 workers for one replica, but 2 stages"),
        (3, {"strategy": "fsdp"}, "batch_size 16 cannot be divided into 3 equal parts: 3 replicas"),
        (4, {"strategy": "ddp+pipeline", "batch_size": 10}, "batch_size 10 .* 4 equal parts: 2 replicas"),
        (4, {"strategy": "magic"}, "no strategy 'magic'"),
        (4, {"vocabulary": 1}, "vocabulary is 1, it must be between 2 and 16777216"),
        (4, {"steps": 0}, "steps is 0, it must be between 1"),
        (4, {"learning_rate": 0}, "learning_rate is 0"),
        (4, {"width": "64"}, "width is '64'"),
        (4, {"depth": 3}, "depth is unknown"),
        (4, {"strategy": "ddp+pipeline", "stages": -2}, "stages is -2"),
    ],
)
async def test_a_recipe_that_its_workers_cannot_divide_is_refused_with_the_numbers(
    trainer: MemoryTrainer, workers: int, params: dict[str, Any], numbers: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        await trainer.stub.SubmitJob(recipe(workers, **params))
    error = from_rpc_error(caught.value)
    assert f"{error.code.name} {error.reason}" == "INVALID_ARGUMENT INVALID_SPEC"
    assert re.search(numbers, error.message), error.message


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "tensor", "pipeline", "ddp+pipeline"])
async def test_a_recipe_is_submitted_with_every_strategy(trainer: MemoryTrainer, strategy: str) -> None:
    job = (await trainer.stub.SubmitJob(recipe(strategy=strategy))).job
    assert json.loads(job.train.code.params_json)["strategy"] == strategy


async def test_an_estimator_of_several_workers_is_refused(trainer: MemoryTrainer) -> None:
    function, params = "flywheel_job.recipes.estimators.training:train", '{"library": "xgboost"}'
    several = submit(function=function, source_sha256="", params_json=params)
    assert await reason(trainer.stub.SubmitJob(several)) == "INVALID_ARGUMENT INVALID_SPEC"
    several.job.train.workers = 1
    await trainer.stub.SubmitJob(several)
