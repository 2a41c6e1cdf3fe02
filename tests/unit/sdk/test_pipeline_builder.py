"""Python functions compiled to graphs, and runs drawn as text."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from google.protobuf.json_format import MessageToDict
from google.protobuf.timestamp_pb2 import Timestamp

import flywheel as fw
from flywheel.errors import PipelineError
from flywheel.graph_drawing import drawing
from flywheel.pipeline_builder import pipelines_in
from flywheel.pipeline_calls import intervals
from flywheel_protos.feature.v1 import training_set_pb2
from flywheel_protos.trainer.v1 import pipeline_graph_pb2 as pb
from flywheel_protos.trainer.v1 import trainer_pb2
from flywheel_protos.types.v1 import job_pb2

SPINE = training_set_pb2.Spine(
    source=training_set_pb2.SourceSpine(source="projects/p/sources/s", label="late")
)
SPEC = trainer_pb2.TrainSpec(experiment="late", tabular=trainer_pb2.TabularRecipe(epochs=3))


@fw.pipeline("late-weekly", params={"end": None, "rates": [0.1, 0.2]})
def weekly(p: fw.PipelineBuilder) -> None:
    end = p.param("end")
    data = p.training_set(
        "data", feature_set="late", spine=SPINE, values={"spine.source.end_time": end}, cache=True
    )
    trained = p.train(
        "train",
        SPEC,
        data=data,
        for_each=p.param("rates"),
        values={"train.tabular.learning_rate": p.item()},
        retries=2,
        retry_delay=timedelta(seconds=5),
        timeout=timedelta(hours=1),
    )
    best = p.select("best", trained, "metrics.val_loss", smallest=True)
    compared = p.compare("compare", model="late", trained=best, data=data)
    registered = p.register("register", model="late", trained=best, data=data, compared=compared)
    approved = p.approval("approve", "Release it?", when=[compared["metrics.auc"] > 0.7])
    released = p.release("release", registered=registered, trained=best, after=[approved], threshold=0.4)
    p.rollout("rollout", released=released)


def test_a_function_becomes_a_graph() -> None:
    graph = fw.compile_pipeline(weekly, "p").graph
    steps = {step.id: MessageToDict(step, preserving_proto_field_name=True) for step in graph.steps}
    assert ["data", "train", "best", "compare", "register", "approve", "release", "rollout"] == list(steps)
    assert {"end": None, "rates": [0.1, 0.2]} == {k: MessageToDict(v) for k, v in graph.params.items()}
    assert {
        "id": "data",
        "training_set": {
            "feature_set": "projects/p/featureSets/late",
            "spine": {"source": {"source": "projects/p/sources/s", "label": "late"}},
        },
        "inputs": {"spine.source.end_time": {"param": "end"}},
        "cache": True,
    } == steps["data"]
    assert {
        "id": "train",
        "job": {"train": {"experiment": "late", "tabular": {"epochs": 3.0}}},
        "inputs": {
            "train.training_set": {"step": {"step": "data", "output": "training_set"}},
            "train.tabular.learning_rate": {"item": {}},
        },
        "for_each": {"param": "rates"},
        "retries": 2,
        "retry_delay": "5s",
        "timeout": "3600s",
    } == steps["train"]
    assert {"step": "train", "output": "metrics.val_loss", "smallest": True} == steps["best"]["select"]
    assert [{"left": {"step": "compare", "output": "metrics.auc"}, "operator": ">", "right": 0.7}] == steps[
        "approve"
    ]["conditions"]
    assert {"threshold": 0.4} == steps["release"]["release"]
    assert ["approve"] == steps["release"]["after"]
    assert {
        "left": {"step": "register", "output": "passed"},
        "operator": "==",
        "right": True,
    } == steps["release"]["conditions"][0]
    assert {"release": {"step": {"step": "release", "output": "release"}}} == steps["rollout"]["inputs"]


def test_the_code_of_a_job_is_packed_and_not_run(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("raise SystemExit(1)\ndef train(ctx): ...\n")
    job = fw.TrainJob("train.py:train", source=tmp_path, experiment="late", params={"lr": 0.1})

    @fw.pipeline("code")
    def code(p: fw.PipelineBuilder) -> None:
        data = p.training_set("data", feature_set="late", spine=SPINE)
        p.train(
            "train",
            job,
            data={"rows": data, "test": "held-out"},
            for_each=[0.1, 0.2],
            values={"train.code.params_json.lr": p.item()},
        )

    compiled = fw.compile_pipeline(code)
    (archive,) = compiled.archives
    step = MessageToDict(compiled.graph.steps[1], preserving_proto_field_name=True)
    assert archive.sha256 == step["job"]["train"]["code"]["source_sha256"]
    assert {"test": "projects/default/trainingSets/held-out"} == step["job"]["train"]["code"]["training_sets"]
    assert {"train.code.training_sets.rows", "train.code.params_json.lr"} == set(step["inputs"])


def test_tuning_and_scoring_are_jobs_of_the_graph() -> None:
    tuning = fw.TuneJob(SPEC, {"learning_rate": fw.FloatRange(1e-4, 1e-1)}, minimize="val_loss", max_trials=4)

    @fw.pipeline("tuned")
    def tuned(p: fw.PipelineBuilder) -> None:
        data = p.training_set("data", feature_set="late", spine=SPINE)
        best = p.tune("tune", tuning, data=data)
        registered = p.register("register", model="late", trained=best, data=data)
        released = p.release("release", registered=registered, trained=best)
        job = fw.ScoreJob("late/releases/1", "s3://bucket/tonight/", "late")
        p.score("score", job, released=released)

    steps = {
        step.id: MessageToDict(step, preserving_proto_field_name=True)
        for step in fw.compile_pipeline(tuned).graph.steps
    }
    assert {"tune.base.training_set": {"step": {"step": "data", "output": "training_set"}}} == steps["tune"][
        "inputs"
    ]
    assert 4 == steps["tune"]["job"]["tune"]["settings"]["max_trials"]
    assert {"step": {"step": "tune", "output": "best_run"}} == steps["register"]["inputs"]["run"]
    assert {"step": {"step": "tune", "output": "best_run"}} == steps["release"]["inputs"]["run"]
    assert {"score.release": {"step": {"step": "release", "output": "release"}}} == steps["score"]["inputs"]


def test_wrong_functions_are_refused(tmp_path: Path) -> None:
    def unknown_param(p: fw.PipelineBuilder) -> None:
        p.param("day")

    def twice(p: fw.PipelineBuilder) -> None:
        p.approval("ok", "?")
        p.approval("ok", "?")

    def condition(p: fw.PipelineBuilder) -> None:
        if p.approval("ok", "?")["reason"].equals("x"):
            p.approval("again", "?")

    def nothing(p: fw.PipelineBuilder) -> None:
        pass

    for function in (unknown_param, twice, condition, nothing):
        with pytest.raises(PipelineError):
            fw.compile_pipeline(fw.pipeline("x")(function))
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(PipelineError):
        pipelines_in(tmp_path / "empty.py")


def test_a_date_range_is_cut_into_intervals() -> None:
    start, day = datetime(2013, 1, 1), timedelta(days=1)
    utc = start.replace(tzinfo=UTC)
    assert [(utc, utc + 2 * day), (utc + 2 * day, utc + 3 * day)] == intervals(
        start, start + 3 * day, 2 * day
    )
    for wrong in ((start, start, day), (start, start + day, 0 * day), (start, start + 1001 * day, day)):
        with pytest.raises(PipelineError):
            intervals(*wrong)


def test_a_run_is_drawn_below_the_steps_that_it_needs() -> None:
    done, running, queued = (
        job_pb2.JobState.Value(f"JOB_STATE_{s}") for s in ("SUCCEEDED", "RUNNING", "QUEUED")
    )

    def step(name: str, *needs: str, state: int = done, **fields: object) -> trainer_pb2.PipelineStep:
        return trainer_pb2.PipelineStep(step=name, kind="job", needs=needs, state=state, **fields)

    begun, ended = Timestamp(seconds=1000), Timestamp(seconds=1012)
    run = trainer_pb2.PipelineRun(
        steps=[
            step("data", started_at=begun, ended_at=ended, message="7 rows"),
            step("a", "data", state=running, started_at=begun, attempt=2),
            step("b", "data", reused_from="projects/p/pipelineRuns/x"),
            step("unused", "data", message="no value"),
            step("c", "a", "b", "unused", state=queued),
            step("ok", "c", state=running, waits_for_approval=True),
        ]
    )
    now = datetime.fromtimestamp(1000 + 3725, UTC)
    assert [
        "✔ data (job) 12.0 s — 7 rows",
        "├─ ▶ a (job) 1 h 02 min [try 2]",
        "└─ ✔ b (job) [reused]",
        "   └─ · c (job) [also after a]",
        "      └─ ▶ ok (job) [waits for approval]",
    ] == drawing(run, now)


@fw.pipeline("late-nightly", params={"scheduled_at": None})
def nightly(p: fw.PipelineBuilder) -> None:
    champion = p.champion("champion", model="late")
    job = fw.ScoreJob(release="", table="s3://lake/tonight/", experiment="late")
    p.score(
        "score",
        job,
        released=champion,
        values={"score.as_of": p.param("scheduled_at")},
        when=[champion["release_in_production"].differs("")],
    )


def test_a_graph_scores_with_the_release_that_serves() -> None:
    graph = fw.compile_pipeline(nightly, "p").graph
    champion, score = (MessageToDict(step, preserving_proto_field_name=True) for step in graph.steps)
    assert {"id": "champion", "champion": {"model": "projects/p/models/late"}} == champion
    assert {
        "score.release": {"step": {"step": "champion", "output": "release_in_production"}},
        "score.as_of": {"param": "scheduled_at"},
    } == score["inputs"]
    assert "s3://lake/tonight/" == score["job"]["score"]["table_uri"]


@fw.pipeline("by-carrier")
def by_carrier(p: fw.PipelineBuilder) -> None:
    data = p.training_set("data", feature_set="late", spine=SPINE)
    p.train(
        "train",
        SPEC,
        data=data,
        for_each=data["categories.v__carrier"],
        at_most=30,
        values={"train.tabular.label_column": p.item()},
    )


def test_a_fan_out_over_an_output_names_it() -> None:
    (_, train) = fw.compile_pipeline(by_carrier, "p").graph.steps
    output = pb.StepOutput(step="data", output="categories.v__carrier")
    assert train.for_each == pb.FanOut(output=output, at_most=30)
