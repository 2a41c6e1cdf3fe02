"""TUNE jobs at the edge: validation, what is launched, who records trials, registration of a model."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import grpc
import numpy as np
import pytest

from flywheel_common.granted.tokens import AttemptTokens
from flywheel_common.grpc.error_details import from_rpc_error
from flywheel_common.signature import OutputKind, OutputSpec
from flywheel_job.artifacts import artifact_key
from flywheel_job.launch import Segment, TrialGate
from flywheel_job.outcome import Artifact, Outcome
from flywheel_job.tuning.launch import TuneLaunch
from flywheel_job.tuning.settings import Population
from flywheel_job.tuning.trial import Trial
from flywheel_protos.trainer.v1 import trainer_pb2 as pb
from flywheel_protos.trainer.v1 import tuning_pb2 as tuning
from flywheel_trainer.jobs.job import JobName
from flywheel_trainer.jobs.train import TrainKind, TrainSettings
from flywheel_trainer.jobs.tune import TuneKind
from tests.support.builders import trainer as build
from tests.support.builders.trainer import AT, TRAINING_SET
from tests.support.builders.trainer_requests import P, submit_job, train_spec
from tests.support.servers.trainer import MemoryTrainer

FLOAT, INT = tuning.FloatRange, tuning.IntRange
RATE = tuning.SearchParameter(name="learning_rate", float_range=FLOAT(low=1e-3, high=1e-1, log=True))
LOSS = tuning.Objective(metric="val_loss", direction="DIRECTION_MINIMIZE")


def settings(**fields: Any) -> tuning.TuneSettings:
    given: dict[str, Any] = {"space": [RATE], "objectives": [LOSS], "max_trials": 5}
    if not set(fields) & {"grid", "random", "population_based"}:
        given["tpe"] = tuning.TpeSearch()
    return tuning.TuneSettings(**(given | fields))


def tune(base: pb.TrainSpec | None = None, **fields: Any) -> pb.SubmitJobRequest:
    spec = pb.TuneSpec(base=base or train_spec(), settings=settings(**fields))
    return pb.SubmitJobRequest(parent=P, job=pb.Job(tune=spec))


def parameter(name: str = "learning_rate", **domain: Any) -> list[tuning.SearchParameter]:
    return [tuning.SearchParameter(name=name, **domain)]


def choices(*texts: str, name: str = "hidden_sizes") -> list[tuning.SearchParameter]:
    return parameter(name, choices=tuning.Choices(values_json=texts))


async def failure(call: Any) -> tuple[str, str]:
    """Status and reason, and the message."""
    with pytest.raises(grpc.RpcError) as caught:
        await call
    error = from_rpc_error(caught.value)
    return f"{error.code.name} {error.reason}", error.message


async def test_a_tune_job_is_stored_as_it_was_submitted(trainer: MemoryTrainer) -> None:
    request = tune(
        space=[RATE, *choices("[64, 32]", "[8]"), *parameter("epochs", int_range=INT(low=1, high=3))],
        constraints=[tuning.MetricConstraint(metric="train_rows", at_least=0.0)],
        early_stopping=tuning.AshaStopping(min_steps=1),
        parallel_trials=2,
    )
    job = (await trainer.stub.SubmitJob(request)).job
    assert job.kind == "TUNE"
    assert list(job.tune.settings.space)[:2] == list(request.job.tune.settings.space)[:2]
    assert job.tune.settings.constraints == request.job.tune.settings.constraints
    assert (job.tune.settings.max_failed_trials, job.tune.base.limits.max_attempts) == (10, 10)
    assert (await trainer.stub.GetJob(pb.GetJobRequest(name=job.name))).job.tune == job.tune


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"space": []}, "space must have between 1 and 100 parameters"),
        ({"space": parameter()}, "space names 'learning_rate' without a domain"),
        ({"space": [RATE, RATE]}, "space names 'learning_rate' twice"),
        ({"space": parameter(fixed_json="0.1")}, "space needs a parameter that is not fixed"),
        ({"space": parameter("a b", fixed_json="1")}, "space has the name 'a b'"),
        ({"space": parameter(float_range=FLOAT(low=2, high=1))}, "is inverted: low is 2 and high is 1"),
        ({"space": parameter(float_range=FLOAT(low=0, high=1, log=True))}, "low above 0 with log"),
        ({"space": parameter(float_range=FLOAT(low=0, high=float("inf")))}, "finite bounds"),
        ({"space": parameter(float_range=FLOAT(low=float("nan"), high=1))}, "finite bounds"),
        ({"space": parameter("epochs", int_range=INT(low=3, high=1))}, "is inverted: low is 3 and high is 1"),
        ({"space": parameter("epochs", int_range=INT(low=1, high=3, step=-1))}, "step of at least 1"),
        ({"space": parameter("epochs", int_range=INT(low=1, high=9, step=2, log=True))}, "of 1 with log"),
        ({"space": choices()}, "between 1 and 1000 choices"),
        ({"space": choices("[1]", "{")}, "JSON values"),
        ({"space": choices("[1]", "NaN")}, "JSON values"),
        ({"space": choices('"\\u0000"')}, "JSON values without NUL"),
        ({"space": choices("[1]", " [1 ]")}, "has a choice twice"),
        ({"space": choices("[1]", '"big"')}, "is not for the tabular recipe"),
        ({"space": choices("0.1", name="momentum")}, "momentum is unknown"),
        ({"space": parameter("epochs", float_range=FLOAT(low=1, high=2.5))}, "is not for the tabular recipe"),
        ({"space": parameter(float_range=FLOAT(low=-1, high=1))}, "learning_rate must be above 0"),
        ({"objectives": []}, "objectives must have between 1 and 8 entries"),
        ({"objectives": [LOSS, LOSS]}, "objectives names a metric twice"),
        ({"objectives": [tuning.Objective(metric="a")]}, "without a direction"),
        ({"objectives": [tuning.Objective(direction="DIRECTION_MINIMIZE")]}, "1 to 200 characters"),
        ({"constraints": [tuning.MetricConstraint(metric="a")]}, "without a bound"),
        ({"constraints": [tuning.MetricConstraint(metric="a", at_most=float("nan"))]}, "not finite"),
        ({"max_trials": 0}, "max_trials must be between 1 and 10000"),
        ({"max_trials": 10_001}, "max_trials must be between 1 and 10000"),
        ({"grid": {}, "max_trials": 0}, "needs grid_points"),
        ({"parallel_trials": 257}, "parallel_trials must be between 1 and 256"),
        ({"seed": 1 << 32}, "seed must be below 2^32"),
        ({"early_stopping": {}}, "early_stopping.min_steps must be at least 1"),
        ({"early_stopping": {"min_steps": 1, "reduction_factor": 1}}, "between 2 and 100"),
        (
            {
                "early_stopping": {"min_steps": 1},
                "objectives": [LOSS, tuning.Objective(metric="b", direction="DIRECTION_MAXIMIZE")],
            },
            "needs exactly one objective",
        ),
        (
            {"population_based": {"population": 1, "interval_steps": 1, "generations": 1}, "max_trials": 0},
            "population_based.population must be between 2",
        ),
        (
            {
                "population_based": {"population": 4, "interval_steps": 1, "generations": 1},
                "max_trials": 0,
                "space": [RATE, *choices("[8]", "[16]")],
            },
            "space.hidden_sizes cannot be tuned with population_based",
        ),
        (
            {
                "population_based": {"population": 4, "interval_steps": 1, "generations": 1},
                "max_trials": 0,
                "space": [RATE, *parameter("epochs", fixed_json="3")],
            },
            "space.epochs cannot be tuned with population_based",
        ),
        (
            {
                "population_based": {"population": 4, "interval_steps": 1000, "generations": 101},
                "max_trials": 0,
            },
            "epochs must be between 1 and 100000",
        ),
    ],
)
async def test_settings_that_are_not_valid_are_refused(
    trainer: MemoryTrainer, fields: dict[str, Any], message: str
) -> None:
    status, found = await failure(trainer.stub.SubmitJob(tune(**fields)))
    assert status == "INVALID_ARGUMENT INVALID_SPEC"
    assert message in found
    assert list((await trainer.stub.ListJobs(pb.ListJobsRequest(parent=P))).jobs) == []


async def test_a_grid_that_is_too_large_is_refused(trainer: MemoryTrainer) -> None:
    space = [
        *parameter("epochs", int_range=INT(low=1, high=200)),
        *parameter("batch_size", int_range=INT(low=1, high=200)),
    ]
    status, message = await failure(trainer.stub.SubmitJob(tune(space=space, grid={}, max_trials=0)))
    assert (status, "has 40000 combinations" in message) == ("INVALID_ARGUMENT INVALID_SPEC", True)


async def test_no_algorithm_is_refused(trainer: MemoryTrainer) -> None:
    request = tune()
    request.job.tune.settings.ClearField("tpe")
    status, message = await failure(trainer.stub.SubmitJob(request))
    assert (status, message) == ("INVALID_ARGUMENT INVALID_SPEC", "tune.settings.algorithm is not set.")


async def test_a_schedule_must_ascend(trainer: MemoryTrainer) -> None:
    segments = [pb.ScheduleSegment(until_step=step) for step in (5, 5)]
    code = pb.CodeRecipe(function="flywheel_job.recipes.sequence.training:train", schedule=segments)
    spec = pb.TrainSpec(experiment="late", code=code)
    request = pb.SubmitJobRequest(parent=P, job=pb.Job(train=spec))
    status, message = await failure(trainer.stub.SubmitJob(request))
    assert (status, "ascending" in message) == ("INVALID_ARGUMENT INVALID_SPEC", True)


TRAIN = TrainKind(None, None, None, None, TrainSettings("b", "python", "h:1", 1.5))  # type: ignore[arg-type]
KIND = TuneKind(TRAIN)
DETAILS = {"uri": "s3://b/t", "columns": [["v__x", "FLOAT64"]], "warm_start": None}


def test_the_workers_of_all_parallel_trials_are_reserved() -> None:
    request = KIND.request(build.TUNE_SPEC)
    assert (request.workers, request.cpus) == (3 * 2, 3 * 2 * 1.5)
    few = replace(build.TUNE_SPEC, settings=replace(build.TUNE_SETTINGS, max_trials=2))
    assert KIND.request(few).workers == 2 * 2


def test_the_launch_names_what_a_trial_runs() -> None:
    job = build.tune_job()
    launched = KIND.launch(job, DETAILS, 2)
    assert launched.command == (
        "python",
        "-m",
        "flywheel_job.tuning",
        "s3://b/jobs/p/job-1/attempts/2/spec.json",
    )
    launch = TuneLaunch.from_json(launched.files["spec.json"])
    assert launch.settings == build.TUNE_SETTINGS
    gated = replace(launch, settings=replace(launch.settings, early_stopping=None))
    spec = gated.trial(
        Trial(4, '{"epochs": 3, "hidden_sizes": [8]}'),
        until_step=0,
        checkpoints="trials/4",
        initial="",
        export=True,
        gate="g",
    )
    assert (spec.run, spec.gate, spec.schedule) == ("projects/p/runs/run-1-4", None, ())
    assert (spec.params["epochs"], spec.params["hidden_sizes"]) == (3, [8])
    assert spec.params["learning_rate"] == build.TRAIN_SPEC.hyperparameters.learning_rate
    assert spec.checkpoint_uri == "s3://b/jobs/p/job-1/checkpoints/trials/4"
    assert spec.data["train"].uri == "s3://b/t"
    assert type(spec).from_json(spec.to_json()) == spec
    part = replace(spec, schedule=(Segment(3, {"a": 1}),), gate=TrialGate("g", 4, "val_auc"))
    assert type(spec).from_json(part.to_json()) == part


def test_a_member_of_a_population_trains_all_its_generations() -> None:
    population = replace(build.TUNE_SPEC.settings, algorithm=Population(4, 3, 5), max_trials=0)
    spec = replace(build.TUNE_SPEC, settings=population)
    details = {"uri": "s3://b/t", "columns": [["v__x", "FLOAT64"]], "warm_start": None}
    launch = KIND.launch(replace(build.tune_job(), spec=spec), details, 1)
    base = TuneLaunch.from_json(launch.files["spec.json"]).base
    assert (base.params["epochs"], base.schedule) == (15, ())


SCHEDULE = [
    pb.ScheduleSegment(until_step=2, params_json='{"learning_rate": 0.1}'),
    pb.ScheduleSegment(until_step=4, params_json='{"learning_rate": 0.01, "dropout": 0.25}'),
]


def scheduled(segments: list[pb.ScheduleSegment], **fields: Any) -> pb.SubmitJobRequest:
    spec = train_spec()
    spec.tabular.MergeFrom(pb.TabularRecipe(**{"epochs": 4, **fields}))
    spec.tabular.schedule.extend(segments)
    return pb.SubmitJobRequest(parent=P, job=pb.Job(train=spec))


async def test_a_schedule_of_the_tabular_recipe_is_stored_and_launched(trainer: MemoryTrainer) -> None:
    job = (await trainer.stub.SubmitJob(scheduled(SCHEDULE))).job
    assert list(job.train.tabular.schedule) == SCHEDULE
    stored = await trainer.ports.jobs.get(JobName.parse(job.name))
    assert stored is not None
    details = {"uri": "s3://b/t", "columns": [["v__x", "FLOAT64"]], "warm_start": None}
    launch = TRAIN.launch_spec(stored, stored.spec, details, 1)
    assert launch.schedule == (
        Segment(2, {"learning_rate": 0.1}),
        Segment(4, {"learning_rate": 0.01, "dropout": 0.25}),
    )
    assert type(launch).from_json(launch.to_json()) == launch


@pytest.mark.parametrize(
    ("segments", "fields", "message"),
    [
        (SCHEDULE[::-1], {}, "with ascending until_step"),
        (SCHEDULE, {"epochs": 5}, "epochs must be the last until_step"),
        ([pb.ScheduleSegment(until_step=4, params_json="[]")], {}, "JSON objects"),
        ([pb.ScheduleSegment(until_step=4, params_json='{"momentum": 1}')], {}, "momentum is unknown"),
        ([pb.ScheduleSegment(until_step=4, params_json='{"hidden_sizes": [3]}')], {}, "changes hidden_sizes"),
        ([pb.ScheduleSegment(until_step=4, params_json='{"learning_rate": -1.0}')], {}, "must be above 0"),
    ],
)
async def test_a_schedule_that_the_recipe_cannot_follow_is_refused(
    trainer: MemoryTrainer, segments: list[pb.ScheduleSegment], fields: dict[str, Any], message: str
) -> None:
    status, found = await failure(trainer.stub.SubmitJob(scheduled(segments, **fields)))
    assert status == "INVALID_ARGUMENT INVALID_SPEC"
    assert message in found


async def test_progress_counts_trials_that_have_ended() -> None:
    progress = KIND.progress(build.tune_job(), {"finished_trials": 7, "best_val_auc": 7})
    assert progress == {"done": 7, "total": 20, "unit": "trial"}


@pytest.fixture
async def tuned(trainer: MemoryTrainer) -> MemoryTrainer:
    """A trainer with a running TUNE job and a TRAIN job."""
    job = build.tune_job()
    await trainer.ports.jobs.create(job, {}, "", b"", AT)
    supervision = trainer.ports.supervision(1_000_000)
    await supervision.begin_attempt(job.name, AT)
    await trainer.ports.jobs.create(build.job("2"), {}, "", b"", AT)
    return trainer


JOB, OTHER = f"{P}/jobs/job-1", f"{P}/jobs/job-2"
RUNNING = tuning.Trial(number=0, state="TRIAL_STATE_RUNNING", params_json='{"epochs": 2}')
SUCCEEDED = tuning.Trial(number=0, state="TRIAL_STATE_SUCCEEDED", params_json='{"epochs": 2}', values=[0.8])


def record(trainer: MemoryTrainer, trial: tuning.Trial, outcome: bytes = b"", **fields: Any) -> Any:
    request = tuning.RecordTrialRequest(parent=fields.get("job", JOB), trial=trial, outcome_json=outcome)
    token = AttemptTokens(b"k" * 32).issue(fields.get("attempt", "job-1-1"))
    metadata = [("authorization", f"Bearer {token}")] if fields.get("authorized", True) else []
    return trainer.stub.RecordTrial(request, metadata=metadata)


async def test_only_the_attempt_of_the_job_records_trials(tuned: MemoryTrainer) -> None:
    stored = (await record(tuned, RUNNING)).trial
    assert (stored.name, stored.run) == (f"{JOB}/trials/0", f"{P}/runs/run-1-0")
    assert (await failure(record(tuned, RUNNING, authorized=False)))[0] == "PERMISSION_DENIED FOREIGN_RUN"
    assert (await failure(record(tuned, RUNNING, attempt="job-1-2")))[
        0
    ] == "FAILED_PRECONDITION ATTEMPT_ENDED"
    assert (await failure(record(tuned, RUNNING, job=OTHER)))[0] == "FAILED_PRECONDITION NO_TUNE_JOB"
    assert (await failure(record(tuned, RUNNING, job=f"{P}/jobs/none")))[0] == "NOT_FOUND UNKNOWN_JOB"


@pytest.mark.parametrize(
    ("trial", "outcome"),
    [
        (tuning.Trial(number=1, state="TRIAL_STATE_RUNNING"), b""),
        (tuning.Trial(), b""),
        (tuning.Trial(number=(1 << 32) - 1, state="TRIAL_STATE_RUNNING"), b""),
        (tuning.Trial(state="TRIAL_STATE_RUNNING", params_json="{"), b""),
        (tuning.Trial(state="TRIAL_STATE_RUNNING", params_json="[1]"), b""),
        (tuning.Trial(state="TRIAL_STATE_RUNNING", segments=[{"params_json": "1"}]), b""),
        (tuning.Trial(state="TRIAL_STATE_RUNNING", last_step=(1 << 64) - 1), b""),
        (tuning.Trial(state="TRIAL_STATE_RUNNING", rungs={0: float("nan")}), b""),
        (tuning.Trial(state="TRIAL_STATE_RUNNING", values=[1.0]), b""),
        (tuning.Trial(state="TRIAL_STATE_SUCCEEDED", values=[1.0, 2.0]), Outcome(True).to_json()),
        (tuning.Trial(state="TRIAL_STATE_SUCCEEDED", values=[float("inf")]), Outcome(True).to_json()),
        (tuning.Trial(state="TRIAL_STATE_SUCCEEDED"), Outcome(True).to_json()),
        (SUCCEEDED, b""),
        (SUCCEEDED, b"{"),
        (SUCCEEDED, b"[]"),
    ],
)
async def test_a_trial_that_is_not_valid_is_refused(
    tuned: MemoryTrainer, trial: tuning.Trial, outcome: bytes
) -> None:
    assert (await failure(record(tuned, trial, outcome)))[0] == "INVALID_ARGUMENT INVALID_TRIAL"
    assert list((await tuned.stub.ListTrials(tuning.ListTrialsRequest(parent=JOB))).trials) == []


async def test_an_attempt_lists_only_the_trials_of_its_job(tuned: MemoryTrainer) -> None:
    await record(tuned, RUNNING)
    metadata = [("authorization", f"Bearer {AttemptTokens(b'k' * 32).issue('job-1-1')}")]
    request = tuning.ListTrialsRequest(parent=JOB)
    assert len((await tuned.stub.ListTrials(request, metadata=metadata)).trials) == 1
    metadata = [("authorization", f"Bearer {AttemptTokens(b'k' * 32).issue('job-2-1')}")]
    status, _ = await failure(tuned.stub.ListTrials(request, metadata=metadata))
    assert status == "PERMISSION_DENIED FOREIGN_RUN"
    best = tuning.ListBestTrialsRequest(parent=OTHER)
    assert (await failure(tuned.stub.ListBestTrials(best)))[0] == "FAILED_PRECONDITION NO_TUNE_JOB"


async def exported(trainer: MemoryTrainer, **fields: Any) -> Outcome:
    """The outcome of a trial that exported a model with two golden rows; `fields` are those of its report."""
    rows = np.zeros((2, 1), dtype="<f4").tobytes()
    report = {
        "framework": "torch",
        "inputs": [{"name": "v__x", "data_type": "FLOAT64", "vocabulary": []}],
        "outputs": 1,
        "metrics": {"auc": 0.75, "importance{feature=v__x}": 0.125},
        "training_set": TRAINING_SET,
        "golden": {
            "row_count": 2,
            "inputs": base64.b64encode(rows).decode(),
            "scores": base64.b64encode(rows).decode(),
        },
        **fields,
    }
    artifacts = []
    for name, content in (("model.onnx", b"onnx"), ("report.json", json.dumps(report).encode())):
        digest = hashlib.sha256(content).hexdigest()
        await trainer.ports.objects.put(artifact_key(digest), content)
        artifacts.append(Artifact(name, len(content), digest, f"s3://b/{artifact_key(digest)}"))
    return Outcome(True, artifacts=tuple(artifacts))


def register(trainer: MemoryTrainer, trial: str, model: str = f"{P}/models/late") -> Any:
    request = tuning.RegisterTrialRequest(trial=trial, model=model, request_id="r")
    return trainer.stub.RegisterTrial(request)


async def test_the_best_trial_is_registered_on_request(
    tuned: MemoryTrainer, add_model: Callable[[MemoryTrainer], Any]
) -> None:
    registry = add_model(tuned)
    await record(tuned, RUNNING)
    await record(tuned, SUCCEEDED, (await exported(tuned)).to_json())
    best = list((await tuned.stub.ListBestTrials(tuning.ListBestTrialsRequest(parent=JOB))).trials)
    assert [one.number for one in best] == [0]
    version = (await register(tuned, best[0].name)).model_version
    assert (await register(tuned, best[0].name)).model_version == version
    assert list(registry.versions) == [version]
    assert registry.versions[version]["training_run"] == f"{P}/runs/run-1-0"
    assert {"importance{feature=v__x}": 0.125} == registry.versions[version]["metrics"]
    assert registry.files[version, "model.onnx"] == b"onnx"


@pytest.mark.parametrize(
    ("fields", "output"),
    [
        ({"task": "regression"}, OutputSpec(OutputKind.REGRESSION)),
        ({"outputs": 3}, OutputSpec(OutputKind.MULTICLASS, class_names=("0", "1", "2"))),
        (
            {"outputs": 2, "task": "multiclass", "classes": ["on time", "late"]},
            OutputSpec(OutputKind.MULTICLASS, class_names=("on time", "late")),
        ),
    ],
)
async def test_a_trial_of_each_kind_of_model_is_registered(
    tuned: MemoryTrainer,
    add_model: Callable[[MemoryTrainer], Any],
    fields: dict[str, Any],
    output: OutputSpec,
) -> None:
    registry = add_model(tuned)
    await record(tuned, RUNNING)
    await record(tuned, SUCCEEDED, (await exported(tuned, **fields)).to_json())
    version = (await register(tuned, f"{JOB}/trials/0")).model_version
    assert output == registry.versions[version]["output"]


async def test_a_trial_whose_report_contradicts_itself_is_refused(
    tuned: MemoryTrainer, add_model: Callable[[MemoryTrainer], Any]
) -> None:
    registry = add_model(tuned)
    await record(tuned, RUNNING)
    await record(tuned, SUCCEEDED, (await exported(tuned, outputs=3, task="binary")).to_json())
    status, _ = await failure(register(tuned, f"{JOB}/trials/0"))
    assert ("FAILED_PRECONDITION UNSUPPORTED_MODEL", {}) == (status, registry.versions)


async def test_a_trial_without_a_model_cannot_be_registered(tuned: MemoryTrainer) -> None:
    await record(tuned, RUNNING)
    assert (await failure(register(tuned, f"{JOB}/trials/0")))[0] == "FAILED_PRECONDITION NO_MODEL"
    for unknown in ("1", "x", "9" * 30):
        assert (await failure(register(tuned, f"{JOB}/trials/{unknown}")))[0] == "NOT_FOUND UNKNOWN_TRIAL"
    assert (await failure(register(tuned, f"{OTHER}/trials/0")))[0] == "FAILED_PRECONDITION NO_TUNE_JOB"


@pytest.fixture
def add_model() -> Callable[[MemoryTrainer], Any]:
    """Adds the model `late` to the registry in memory."""

    def add(trainer: MemoryTrainer) -> Any:
        registry: Any = trainer.ports.registry
        registry._production[f"{P}/models/late"] = ""
        return registry

    return add


async def test_a_job_without_a_specification_is_refused(trainer: MemoryTrainer) -> None:
    request = submit_job()
    request.job.ClearField("train")
    status, message = await failure(trainer.stub.SubmitJob(request))
    assert status == "INVALID_ARGUMENT INVALID_SPEC"
    assert "set one field of `spec`" in message
    assert JobName("p", "job-1") == build.tune_job().name
