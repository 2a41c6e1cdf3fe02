"""EXPORT jobs in the trainer: validation, what is stored and what is launched."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from flywheel_common.grpc.error_details import from_rpc_error
from flywheel_job.export.params import ExportParams, ExportPolicy
from flywheel_job.launch import Column, LaunchSpec
from flywheel_job.model_file import InputTensor, ModelFile
from flywheel_job.outcome import Outcome
from flywheel_job.signature import Input
from flywheel_protos.trainer.v1 import export_pb2
from flywheel_protos.trainer.v1 import trainer_pb2 as pb
from flywheel_trainer.encoding.specs import spec_from_json, spec_of, spec_to_json
from flywheel_trainer.jobs.export import ExportKind
from flywheel_trainer.jobs.models import FoundModel, Models
from flywheel_trainer.jobs.ports import TrainingSet
from flywheel_trainer.jobs.train import TrainSettings
from tests.support.builders import trainer as build
from tests.support.builders.trainer import TRAINING_SET
from tests.support.builders.trainer_requests import P
from tests.support.granted_addresses import refused_addresses
from tests.support.servers.trainer import MemoryTrainer

VERSION, TWO = f"{P}/models/late/versions/1", f"{P}/models/late/versions/2"
EMPTY = f"{P}/trainingSets/empty"
MODEL = ModelFile(
    VERSION,
    "s3://b/artifacts/aa",
    "aa" * 32,
    (InputTensor("X", "FLOAT32", (Input("v__x", "FLOAT64"),)),),
    "Y",
    "BINARY",
)
INVALID = "INVALID_ARGUMENT INVALID_SPEC"
POLICY = export_pb2.ExportPolicy


@pytest.fixture(autouse=True)
def peers(trainer: MemoryTrainer) -> None:
    described = TrainingSet(TRAINING_SET, "s3://b/t", (Column("v__x", "FLOAT64"),), 100, "f" * 64, "")
    trainer.feature.known[TRAINING_SET] = described
    trainer.feature.known[EMPTY] = replace(described, name=EMPTY, row_count=0)
    trainer.feature.known[f"{P}/trainingSets/other"] = replace(described, columns=())
    known = trainer.ports.models.known  # type: ignore[attr-defined]
    known[VERSION] = FoundModel(MODEL)
    known[TWO] = FoundModel(replace(MODEL, tensors=(*MODEL.tensors, InputTensor("N", "INT64", ()))))


def export(**fields: Any) -> pb.SubmitJobRequest:
    values: dict[str, Any] = {
        "experiment": "late",
        "model_version": VERSION,
        "training_set": TRAINING_SET,
        "format": export_pb2.EXPORT_FORMAT_INT8_STATIC,
    }
    return pb.SubmitJobRequest(parent=P, job=pb.Job(export=export_pb2.ExportSpec(**{**values, **fields})))


async def reason(call: Any) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        await call
    error = from_rpc_error(caught.value)
    return f"{error.code.name} {error.reason}"


async def test_a_job_is_stored_as_it_was_submitted(trainer: MemoryTrainer) -> None:
    request = export(
        policy=POLICY(max_flip_share=0, max_log_loss_increase=0.1, max_auc_loss=0, max_rmse_increase=1),
        calibration_rows=10,
        evaluation_rows=20,
        per_channel=True,
        start_time=Timestamp(seconds=5),
        end_time=Timestamp(seconds=9),
        seed=3,
        cpus=2,
    )
    request.job.export.timeout.FromSeconds(60)
    expected = export_pb2.ExportSpec()
    expected.CopyFrom(request.job.export)
    expected.experiment = f"{P}/experiments/late"
    job = (await trainer.stub.SubmitJob(request)).job
    assert (job.kind, job.export) == ("EXPORT", expected)
    spec = spec_of(job)
    assert spec_from_json(json.loads(json.dumps(spec_to_json(spec, "p")))) == spec


async def test_absent_fields_have_defaults(trainer: MemoryTrainer) -> None:
    spec = (await trainer.stub.SubmitJob(export())).job.export
    assert (spec.calibration_rows, spec.evaluation_rows) == (2_000, 20_000)
    assert (spec.policy.max_flip_share, spec.policy.max_log_loss_increase) == (0.01, 0.005)
    assert (spec.policy.max_auc_loss, spec.policy.max_rmse_increase) == (0.002, 0.01)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"experiment": ""}, INVALID),
        ({"model_version": f"{P}/models/late/versions/9"}, "NOT_FOUND UNKNOWN_MODEL_VERSION"),
        ({"model_version": "late"}, INVALID),
        ({"model_version": TWO}, "FAILED_PRECONDITION UNSUPPORTED_SIGNATURE"),
        ({"run": f"{P}/runs/none"}, "NOT_FOUND UNKNOWN_RUN"),
        ({"training_set": ""}, INVALID),
        ({"training_set": f"{P}/trainingSets/none"}, "NOT_FOUND UNKNOWN_TRAINING_SET"),
        ({"training_set": f"{P}/trainingSets/other"}, INVALID),
        ({"training_set": EMPTY}, INVALID),
        ({"format": export_pb2.EXPORT_FORMAT_UNSPECIFIED}, INVALID),
        ({"format": 77}, INVALID),
        ({"policy": POLICY(max_flip_share=1.5)}, INVALID),
        ({"policy": POLICY(max_flip_share=float("nan"))}, INVALID),
        ({"policy": POLICY(max_log_loss_increase=-1)}, INVALID),
        ({"policy": POLICY(max_auc_loss=float("inf"))}, INVALID),
        ({"policy": POLICY(max_rmse_increase=float("nan"))}, INVALID),
        ({"calibration_rows": 5}, INVALID),
        ({"evaluation_rows": 1_000_001}, INVALID),
        ({"seed": 1 << 32}, INVALID),
        ({"cpus": float("nan")}, INVALID),
        ({"start_time": Timestamp(seconds=9), "end_time": Timestamp(seconds=5)}, INVALID),
    ],
)
async def test_wrong_fields_are_refused_and_nothing_is_queued(
    trainer: MemoryTrainer, fields: dict[str, Any], expected: str
) -> None:
    assert await reason(trainer.stub.SubmitJob(export(**fields))) == expected
    assert not (await trainer.stub.ListJobs(pb.ListJobsRequest(parent=P))).jobs


async def test_the_launched_specification_has_model_rows_and_policy(trainer: MemoryTrainer) -> None:
    ports = trainer.ports
    kind = ExportKind(
        ports.feature,
        Models(ports.models, ports.runs, ports.objects, "b"),
        TrainSettings("b", "python", "trainer:7103", 1.0),
    )
    spec = spec_of(export(seed=7, policy=POLICY(max_flip_share=0.5)).job)
    details = json.loads(json.dumps(await kind.validate(spec)))  # type: ignore[arg-type]
    job = replace(build.job(), spec=spec, kind="EXPORT")
    launch = kind.launch(job, details, 1)
    assert refused_addresses(job.name, 1, launch) == []
    launched = LaunchSpec.from_json(launch.files["spec.json"])
    params = ExportParams.of(launched.params)
    assert (params.format, params.policy) == ("INT8_STATIC", ExportPolicy(max_flip_share=0.5))
    assert ModelFile.from_json(launched.models["model"]) == MODEL
    assert (launched.function, launched.seed) == ("flywheel_job.export.job:export", 7)
    assert kind.progress(job, {"scanned_rows": 9})["done"] == 9

    async def read(file: str) -> bytes | None:
        return b'{"half": ' if file == "outcome.json" else Outcome(False, "EXPORT_REFUSED").to_json()

    success, failure = await kind.conclude(read)
    assert success is None
    assert failure is not None
    assert failure.error_reason == "EXPORT_REFUSED"
