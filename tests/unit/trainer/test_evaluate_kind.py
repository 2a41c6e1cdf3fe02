"""EVALUATE jobs in the trainer: validation, what is pinned, and the evidence that is recorded at the end."""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from flywheel_common.errors import Unavailable
from flywheel_common.grpc.error_details import from_rpc_error
from flywheel_common.postgres.errors import LeaseLost
from flywheel_job.artifacts import artifact_key
from flywheel_job.launch import Column, LaunchSpec
from flywheel_job.model_evaluation.params import EvaluationParams
from flywheel_job.model_file import InputTensor, ModelFile
from flywheel_job.outcome import Artifact, Outcome
from flywheel_job.signature import Input
from flywheel_protos.trainer.v1 import evaluation_pb2
from flywheel_protos.trainer.v1 import trainer_pb2 as pb
from flywheel_protos.types.v1 import job_pb2, tensor_pb2
from flywheel_trainer.encoding.specs import spec_from_json, spec_of, spec_to_json
from flywheel_trainer.fakes.supervision import MemorySupervision
from flywheel_trainer.jobs.engine import EngineJob, EngineState
from flywheel_trainer.jobs.errors import UnsupportedSignature
from flywheel_trainer.jobs.evaluate import EvaluateKind, EvaluatePeers
from flywheel_trainer.jobs.models import FoundModel, Models
from flywheel_trainer.jobs.ports import TrainingSet
from flywheel_trainer.jobs.resources import Quota
from flywheel_trainer.jobs.supervision import Rules, Supervisor
from flywheel_trainer.jobs.train import TrainSettings
from flywheel_trainer.runs.run import Run, RunName, RunState
from tests.support.builders import trainer as build
from tests.support.builders.trainer import AT, TRAINING_SET
from tests.support.builders.trainer_requests import P
from tests.support.granted_addresses import refused_addresses
from tests.support.servers.trainer import MemoryTrainer

VERSION, CHAMPION, OTHER = (f"{P}/models/late/versions/{number}" for number in (2, 1, 3))
RUN = f"{P}/runs/run-9"
EMPTY = f"{P}/trainingSets/empty"
INPUT = Input("v__x", "FLOAT64")


def model(name: str, **fields: Any) -> ModelFile:
    values: dict[str, Any] = {
        "uri": "s3://b/artifacts/aa",
        "sha256": "aa" * 32,
        "tensors": (InputTensor("INPUT", "FLOAT32", (INPUT,)),),
        "output": "SCORE",
        "kind": "BINARY",
    }
    return ModelFile(name, **{**values, **fields})


@pytest.fixture(autouse=True)
def peers(trainer: MemoryTrainer) -> Any:
    """A version, its champion, a version with another output, and two training sets."""
    columns = (Column("v__x", "FLOAT64"),)
    weights = (Column("weight", "FLOAT64"),)
    described = TrainingSet(TRAINING_SET, "s3://b/t", columns, 100, "f" * 64, "", extra_columns=weights)
    trainer.feature.known[TRAINING_SET] = described
    trainer.feature.known[EMPTY] = replace(described, name=EMPTY, row_count=0)
    known = trainer.ports.models.known  # type: ignore[attr-defined]
    known[VERSION] = FoundModel(model(VERSION, threshold=0.3), "elsewhere")
    known[CHAMPION] = FoundModel(model(CHAMPION), "elsewhere")
    known[OTHER] = FoundModel(model(OTHER, kind="REGRESSION"), TRAINING_SET)
    trainer.ports.models.serving[f"{P}/models/late"] = known[CHAMPION]  # type: ignore[attr-defined]
    return trainer.ports


def evaluate(request_id: str = "", **fields: Any) -> pb.SubmitJobRequest:
    values: dict[str, Any] = {"experiment": "late", "model_version": VERSION, "training_set": TRAINING_SET}
    spec = evaluation_pb2.EvaluateSpec(**{**values, **fields})
    return pb.SubmitJobRequest(parent=P, job=pb.Job(evaluate=spec), request_id=request_id)


async def reason(call: Any) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        await call
    error = from_rpc_error(caught.value)
    return f"{error.code.name} {error.reason}"


async def details_of(trainer: MemoryTrainer, **fields: Any) -> dict[str, Any]:
    """What the supervisor needs of a submitted job."""
    job = (await trainer.stub.SubmitJob(evaluate(**fields))).job
    jobs = trainer.ports.jobs._tracking.jobs  # type: ignore[attr-defined]
    (found,) = [dict(one.details) for name, one in jobs.items() if str(name) == job.name]
    return found


async def test_a_job_is_stored_as_it_was_submitted(trainer: MemoryTrainer) -> None:
    start = Timestamp()
    start.FromDatetime(datetime(2026, 3, 1, tzinfo=UTC))
    request = evaluate(
        label_column="weight",
        weight_column="weight",
        slice_columns=["origin", "carrier"],
        start_time=start,
        champion=CHAMPION,
        kind=tensor_pb2.OUTPUT_KIND_BINARY,
        threshold=evaluation_pb2.ThresholdChoice(
            costs=evaluation_pb2.DecisionCosts(false_positive=1, false_negative=5), used=0.25
        ),
        bootstrap_samples=0,
        confidence=0.9,
        seed=7,
        record_evidence=True,
        cpus=0.5,
    )
    request.job.evaluate.timeout.FromSeconds(600)
    job = (await trainer.stub.SubmitJob(request)).job
    expected = evaluation_pb2.EvaluateSpec()
    expected.CopyFrom(request.job.evaluate)
    expected.experiment = f"{P}/experiments/late"
    assert (job.kind, job.evaluate) == ("EVALUATE", expected)
    assert (await trainer.stub.GetJob(pb.GetJobRequest(name=job.name))).job.evaluate == expected
    spec = spec_of(job)
    assert spec_from_json(json.loads(json.dumps(spec_to_json(spec, "p")))) == spec


async def test_absent_fields_have_defaults(trainer: MemoryTrainer) -> None:
    spec = (await trainer.stub.SubmitJob(evaluate())).job.evaluate
    assert (spec.label_column, spec.bootstrap_samples, spec.confidence) == ("label", 200, 0.95)
    assert (spec.threshold.beta, spec.timeout.seconds) == (1.0, 86_400)


async def test_model_champion_and_rows_are_pinned_at_submission(trainer: MemoryTrainer) -> None:
    details = await details_of(trainer, slice_columns=["origin"], seed=7)
    assert ModelFile.from_json(details["models"]["model"]) == model(VERSION, threshold=0.3)
    assert ModelFile.from_json(details["models"]["champion"]).name == CHAMPION
    assert details["data"]["rows"] == {
        "uri": "s3://b/t",
        "name": TRAINING_SET,
        "content_hash": "f" * 64,
    }
    assert EvaluationParams.of(details["params"]).slices == ("origin",)


@pytest.mark.parametrize(
    ("fields", "note"),
    [
        ({"without_champion": True}, "compared with nothing, as the job asks"),
        ({"model_version": CHAMPION}, "the version is the champion itself"),
        ({"model_version": OTHER}, f"not compared: the output of {CHAMPION} is BINARY"),
    ],
)
async def test_the_note_says_why_there_is_no_champion(
    trainer: MemoryTrainer, fields: dict[str, Any], note: str
) -> None:
    details = await details_of(trainer, **fields)
    assert details["params"]["note"] == note
    assert list(details["models"]) == ["model"]


async def test_a_model_without_production_has_no_champion(trainer: MemoryTrainer) -> None:
    trainer.ports.models.serving.clear()  # type: ignore[attr-defined]
    assert (await details_of(trainer))["params"]["note"] == "no champion to compare with"


async def test_a_champion_whose_inputs_are_missing_is_not_compared(trainer: MemoryTrainer) -> None:
    other = (InputTensor("INPUT", "FLOAT32", (Input("v__y", "FLOAT64"),)),)
    known = trainer.ports.models.known  # type: ignore[attr-defined]
    serving = FoundModel(model(CHAMPION, tensors=other))
    known[CHAMPION] = trainer.ports.models.serving[f"{P}/models/late"] = serving  # type: ignore[attr-defined]
    note = (await details_of(trainer))["params"]["note"]
    assert note == f"not compared: {TRAINING_SET} has no column 'v__y', which {CHAMPION} reads"
    refused = evaluate(champion=CHAMPION)
    assert await reason(trainer.stub.SubmitJob(refused)) == "INVALID_ARGUMENT INVALID_SPEC"


async def test_a_run_is_compared_with_the_production_of_a_model(trainer: MemoryTrainer) -> None:
    late = f"{P}/models/late"
    await put_run(trainer, b'{"inputs": [{"name": "v__x", "data_type": "FLOAT64", "vocabulary": []}]}')
    details = await details_of(trainer, run=RUN, champion=late)
    assert (details["params"]["note"], details["models"]["champion"]["name"]) == ("", CHAMPION)

    serving = trainer.ports.models.serving  # type: ignore[attr-defined]
    models: list[tuple[Any, str]] = [
        (None, "no champion to compare with"),
        (FoundModel(model(OTHER, kind="REGRESSION")), f"not compared: the output of {OTHER} is REGRESSION"),
        (UnsupportedSignature("its output is VECTOR"), "not compared: its output is VECTOR"),
    ]
    for champion, note in models:
        serving[late] = champion
        details = await details_of(trainer, run=RUN, champion=late)
        assert (details["params"]["note"], list(details["models"])) == (note, ["model"])


async def test_classes_in_another_order_are_not_compared(trainer: MemoryTrainer) -> None:
    known, serving = trainer.ports.models.known, trainer.ports.models.serving  # type: ignore[attr-defined]
    known[VERSION] = FoundModel(model(VERSION, kind="MULTICLASS", classes=("a", "b", "c")))
    serving[f"{P}/models/late"] = FoundModel(model(CHAMPION, kind="MULTICLASS", classes=("b", "a", "c")))
    note = (await details_of(trainer))["params"]["note"]
    assert note == f"not compared: {CHAMPION} has the classes b, a, c"


INVALID, UNKNOWN = "INVALID_ARGUMENT INVALID_SPEC", "NOT_FOUND UNKNOWN_MODEL_VERSION"
CHOICE = evaluation_pb2.ThresholdChoice


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"experiment": ""}, INVALID),
        ({"experiment": "none"}, "NOT_FOUND UNKNOWN_EXPERIMENT"),
        ({"model_version": f"{P}/models/late/versions/99"}, UNKNOWN),
        ({"model_version": "late/1"}, INVALID),
        ({"model_version": ""}, INVALID),
        ({"run": f"{P}/runs/none"}, "NOT_FOUND UNKNOWN_RUN"),
        ({"run": "none"}, "INVALID_ARGUMENT INVALID_NAME"),
        ({"training_set": f"{P}/trainingSets/none"}, "NOT_FOUND UNKNOWN_TRAINING_SET"),
        ({"training_set": EMPTY}, INVALID),
        ({"training_set": ""}, INVALID),
        ({"parquet_uri": "/etc/passwd"}, INVALID),
        ({"parquet_uri": "file:///etc"}, INVALID),
        ({"parquet_uri": "s3://bucket"}, INVALID),
        ({"parquet_uri": "s3:///key"}, INVALID),
        ({"kind": tensor_pb2.OUTPUT_KIND_REGRESSION}, INVALID),
        ({"kind": 99}, INVALID),
        ({"label_column": "none"}, INVALID),
        ({"weight_column": "none"}, INVALID),
        ({"slice_columns": [f"c{n}" for n in range(11)]}, INVALID),
        ({"slice_columns": ["a", "a"]}, INVALID),
        ({"slice_columns": [""]}, INVALID),
        ({"slice_columns": ["x" * 10_000]}, INVALID),
        ({"champion": "late"}, INVALID),
        ({"champion": VERSION}, INVALID),
        ({"champion": f"{P}/models/late/versions/99"}, UNKNOWN),
        ({"champion": OTHER}, INVALID),
        ({"champion": CHAMPION, "without_champion": True}, INVALID),
        ({"threshold": CHOICE(beta=0)}, INVALID),
        ({"threshold": CHOICE(beta=float("nan"))}, INVALID),
        ({"threshold": CHOICE(used=1.5)}, INVALID),
        ({"threshold": CHOICE(costs=evaluation_pb2.DecisionCosts())}, INVALID),
        ({"threshold": CHOICE(costs=evaluation_pb2.DecisionCosts(false_positive=-1))}, INVALID),
        ({"bootstrap_samples": 10_001}, INVALID),
        ({"confidence": 1.0}, INVALID),
        ({"confidence": 0.1}, INVALID),
        ({"seed": 1 << 32}, INVALID),
        ({"cpus": -1}, INVALID),
        ({"start_time": Timestamp(seconds=9), "end_time": Timestamp(seconds=9)}, INVALID),
        ({"record_evidence": True, "parquet_uri": "s3://b/rows/"}, INVALID),
        ({"record_evidence": True, "model_version": OTHER}, INVALID),
    ],
)
async def test_wrong_fields_are_refused_and_nothing_is_queued(
    trainer: MemoryTrainer, fields: dict[str, Any], expected: str
) -> None:
    assert await reason(trainer.stub.SubmitJob(evaluate(**fields))) == expected
    assert not (await trainer.stub.ListJobs(pb.ListJobsRequest(parent=P))).jobs


async def test_without_the_registry_nothing_is_queued(trainer: MemoryTrainer) -> None:
    trainer.ports.models.down = True  # type: ignore[attr-defined]
    assert await reason(trainer.stub.SubmitJob(evaluate())) == "UNAVAILABLE REGISTRY_UNAVAILABLE"
    assert not (await trainer.stub.ListJobs(pb.ListJobsRequest(parent=P))).jobs


async def test_a_model_that_a_run_exported_is_read_by_digest(trainer: MemoryTrainer) -> None:
    report = {
        "inputs": [{"name": "v__x", "data_type": "FLOAT64", "vocabulary": []}],
        "outputs": 1,
        "calibration": {"slope": 1.5, "intercept": -0.5},
        "threshold": 0.4,
    }
    await put_run(trainer, json.dumps(report).encode())
    details = await details_of(trainer, run=RUN, kind=tensor_pb2.OUTPUT_KIND_BINARY)
    found = ModelFile.from_json(details["models"]["model"])
    assert (found.kind, found.threshold) == ("BINARY", 0.4)
    assert found.calibration == {"platt": {"slope": 1.5, "intercept": -0.5}}
    assert found.uri == f"s3://b/{artifact_key('cd' * 32)}", "not the address that the run's creator wrote"
    assert details["params"]["note"] == "the model of a run has no champion: name one"


@pytest.mark.parametrize("report", [b"{", b"{}", b'{"inputs": 1}', b'{"inputs": [], "task": "vector"}'])
async def test_a_run_whose_report_describes_no_model_is_refused(
    trainer: MemoryTrainer, report: bytes
) -> None:
    await put_run(trainer, report)
    assert await reason(trainer.stub.SubmitJob(evaluate(run=RUN))) == "FAILED_PRECONDITION NO_MODEL_FILE"


async def test_a_run_without_a_model_is_refused(trainer: MemoryTrainer) -> None:
    run = Run(RunName.parse(RUN), "late", RunState.SUCCEEDED)
    await trainer.ports.runs.create_run(run, "", b"", AT)
    assert await reason(trainer.stub.SubmitJob(evaluate(run=RUN))) == "FAILED_PRECONDITION NO_MODEL_FILE"


async def put_run(trainer: MemoryTrainer, report: bytes) -> None:
    digest = hashlib.sha256(report).hexdigest()
    await trainer.ports.objects.put(artifact_key(digest), report)
    artifacts = (
        Artifact("model.onnx", 1, "cd" * 32, "s3://elsewhere/secret"),
        Artifact("report.json", len(report), digest, "s3://elsewhere/secret"),
    )
    run = Run(RunName.parse(RUN), "late", artifacts=artifacts)
    await trainer.ports.runs.create_run(run, "", b"", AT)


@pytest.fixture
def kind(trainer: MemoryTrainer) -> EvaluateKind:
    ports = trainer.ports
    models = Models(ports.models, ports.runs, ports.objects, "b")
    settings = TrainSettings("b", "python", "trainer:7103", 1.0)
    peers = EvaluatePeers(ports.feature, models, ports.evaluations, ports.objects)
    return EvaluateKind(peers, settings)


async def test_the_launched_specification_has_models_and_rows(
    trainer: MemoryTrainer, kind: EvaluateKind
) -> None:
    spec = spec_of(evaluate(seed=7, cpus=2).job)
    details = json.loads(json.dumps(await kind.validate(spec)))  # type: ignore[arg-type]
    job = replace(build.job(), spec=spec, kind="EVALUATE")
    launch = kind.launch(job, details, 2)
    launched = LaunchSpec.from_json(launch.files["spec.json"])
    assert launched.function == "flywheel_job.model_evaluation.job:evaluate"
    assert (launched.seed, launched.workers, launched.resources.cpus) == (7, 1, 2.0)
    assert ModelFile.from_json(launched.models["champion"]).name == CHAMPION
    assert launched.data["rows"].name == TRAINING_SET
    assert launch.command[-1] == "s3://b/jobs/p/job-1/attempts/2/spec.json"
    assert kind.launch(job, details, 2) == launch
    assert refused_addresses(job.name, 2, launch) == []
    assert kind.progress(job, {"scored_rows": 50}) == {"done": 50, "total": 0, "unit": "row"}
    assert kind.progress(job, {"scored_rows": 50, "sample": 7})["done"] == 7


def outcome_with(trainer: MemoryTrainer, **report: Any) -> tuple[Outcome, bytes]:
    values: dict[str, Any] = {
        "job": f"{P}/jobs/job-1",
        "record_evidence": True,
        "model": VERSION,
        "champion": CHAMPION,
        "note": "",
        "rows": 90,
        "training_set": TRAINING_SET,
        "content_hash": "f" * 64,
        "time_range": "from the beginning to the end",
        "evidence": {"auc": 0.8, "champion_auc": 0.7, "rows": 90.0},
    }
    content = json.dumps({**values, **report}).encode()
    digest = hashlib.sha256(content).hexdigest()
    return Outcome(True, artifacts=(Artifact("evaluation.json", len(content), digest, "s3://b/x"),)), content


async def conclude(trainer: MemoryTrainer, kind: EvaluateKind, **report: Any) -> Any:
    outcome, content = outcome_with(trainer, **report)
    await trainer.ports.objects.put(artifact_key(outcome.artifacts[0].sha256), content)

    async def read(file: str) -> bytes | None:
        return outcome.to_json() if file == "outcome.json" else None

    return await kind.conclude(read)


async def test_the_end_of_a_job_records_the_evidence_once(trainer: MemoryTrainer, kind: EvaluateKind) -> None:
    for _ in range(2):
        success, failure = await conclude(trainer, kind)
        assert success.succeeded
        assert failure is None
    rows = f"90 rows of {TRAINING_SET} (ffffffffffff), from the beginning to the end"
    (recorded,) = trainer.ports.evaluations.recorded[VERSION]  # type: ignore[attr-defined]
    assert recorded == {
        "values": {"auc": 0.8, "champion_auc": 0.7, "rows": 90.0},
        "champion": CHAMPION,
        "findings": [
            f"passed: measured by {P}/jobs/job-1 on {rows}",
            f"passed: compared with {CHAMPION} on the same rows",
        ],
    }


async def test_without_a_request_nothing_is_recorded(trainer: MemoryTrainer, kind: EvaluateKind) -> None:
    success, _ = await conclude(trainer, kind, record_evidence=False)
    assert success.succeeded
    assert trainer.ports.evaluations.recorded == {}  # type: ignore[attr-defined]


async def test_the_job_waits_while_the_registry_is_away(trainer: MemoryTrainer, kind: EvaluateKind) -> None:
    trainer.ports.models.down = True  # type: ignore[attr-defined]
    with pytest.raises(Unavailable):
        await conclude(trainer, kind)
    trainer.ports.models.down = False  # type: ignore[attr-defined]
    assert (await conclude(trainer, kind))[0].succeeded


async def test_a_refusal_of_the_registry_fails_the_job(trainer: MemoryTrainer, kind: EvaluateKind) -> None:
    success, failure = await conclude(trainer, kind, model=f"{P}/models/late/versions/98")
    assert success is None
    assert "does not exist" in failure.error_message


async def test_a_changed_report_is_not_recorded(trainer: MemoryTrainer, kind: EvaluateKind) -> None:
    outcome, content = outcome_with(trainer)
    await trainer.ports.objects.put(artifact_key(outcome.artifacts[0].sha256), content + b" ")

    async def read(file: str) -> bytes | None:
        return outcome.to_json() if file == "outcome.json" else None

    success, failure = await kind.conclude(read)
    assert success is None
    assert failure is not None
    assert failure.error_reason == "DIGEST_MISMATCH"
    assert trainer.ports.evaluations.recorded == {}  # type: ignore[attr-defined]


class DyingSupervision(MemorySupervision):
    """A store whose process dies before it can end a job, as often as `deaths` says."""

    deaths = 0

    async def end(self, *arguments: Any) -> bool:
        if DyingSupervision.deaths:
            DyingSupervision.deaths -= 1
            raise LeaseLost("The process has died.")
        return await super().end(*arguments)


async def test_a_death_before_the_end_of_the_job_does_not_record_twice(
    trainer: MemoryTrainer, kind: EvaluateKind
) -> None:
    job = (await trainer.stub.SubmitJob(evaluate())).job.name.rpartition("/")[2]
    tracking, objects = trainer.ports.jobs._tracking, trainer.ports.objects  # type: ignore[attr-defined]
    running = {"get": lambda command, default=None: lambda _environment: ("", None)}
    trainer.engine.programs = type("Running", (dict,), running)()
    rules = Rules("b", "python", lambda engine_id: {}, 4, lambda project: Quota())
    tokens = itertools.count(1)

    def supervisor() -> Supervisor:
        store = DyingSupervision(tracking, next(tokens))
        return Supervisor(store, trainer.engine, objects, {"EVALUATE": kind}, rules, trainer.clock)

    await supervisor().tick()
    outcome, content = outcome_with(trainer, job=f"{P}/jobs/{job}")
    await objects.put(artifact_key(outcome.artifacts[0].sha256), content)
    await objects.put(f"jobs/p/{job}/attempts/1/outcome.json", outcome.to_json())
    trainer.engine.becomes(f"{job}-1", EngineJob(EngineState.SUCCEEDED))

    trainer.ports.models.down = True  # type: ignore[attr-defined]
    await supervisor().tick()
    waiting = (await trainer.stub.GetJob(pb.GetJobRequest(name=f"{P}/jobs/{job}"))).job
    assert waiting.state == job_pb2.JOB_STATE_RUNNING
    assert waiting.progress.message.startswith("waits: ")

    trainer.ports.models.down = False  # type: ignore[attr-defined]
    DyingSupervision.deaths = 2
    for _ in range(2):
        with pytest.raises(LeaseLost):
            await supervisor().tick()
    await supervisor().tick()
    ended = (await trainer.stub.GetJob(pb.GetJobRequest(name=waiting.name))).job
    assert ended.state == job_pb2.JOB_STATE_SUCCEEDED
    assert len(trainer.ports.evaluations.recorded[VERSION]) == 1  # type: ignore[attr-defined]
