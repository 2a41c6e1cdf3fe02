"""Import of a folder and of an SQLite file as MLflow 3.17 writes them, and of its answers."""

from __future__ import annotations

import math
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import flywheel as fw
from flywheel.cli.main import app
from flywheel.tracking.mlflow_import.file_store import read_meta
from flywheel.tracking.mlflow_import.importing import experiment_id
from flywheel_protos.trainer.v1 import trainer_pb2 as pb
from flywheel_trainer.runs.run import RunName
from tests.support.mlflow_answers import MlflowAnswers
from tests.support.servers.restarted_trainer import RestartedTrainer

PARENT, CHILD, BAD, GONE, RUNNING = (f"{digit}" * 32 for digit in "abcde")
START_MS, END_MS = 1_795_967_473_955, 1_795_967_474_025
EXPERIMENT = "Flight delays / v1"
# uuid, name, status, stage, params, tags, metrics: key → (time, value, step)
RUNS: list[tuple[str, str, str, str, dict[str, str], dict[str, str], dict[str, list[Any]]]] = [
    (
        PARENT,
        "first run",
        "FINISHED",
        "active",
        {"lr": "0.1", "long": "x" * 6_000, "group/inner": "1"},
        {"team": "a", "mlflow.note.content": "# why\n", "mlflow.source.git.commit": "c0ffee"},
        {
            "val loss": [(START_MS + step, 1 / (step + 1), step) for step in range(5)],
            "auc": [(START_MS, 0.5, 0), (START_MS + 1, 0.75, 0)],
            "odd": [(START_MS, math.nan, 0)],
            "big": [(START_MS, math.inf, 0), (START_MS, -math.inf, 1)],
        },
    ),
    (CHILD, "child", "FINISHED", "active", {}, {"mlflow.parentRunId": PARENT}, {"auc": [(START_MS, 1.0, 7)]}),
    (BAD, "bad", "FAILED", "active", {}, {}, {}),
    (GONE, "gone", "FINISHED", "deleted", {}, {}, {}),
    (RUNNING, "running", "RUNNING", "active", {}, {}, {}),
]
STATUS_NUMBERS = {"RUNNING": 1, "FINISHED": 3, "FAILED": 4}


def write_folder(folder: Path) -> Path:
    """A file store, in which the child comes before its parent."""
    experiment = folder / "717900761167519593"
    for root, name in ((folder / "0", "Default"), (experiment, EXPERIMENT)):
        write(root / "meta.yaml", f"experiment_id: '{root.name}'\nlifecycle_stage: active\nname: {name}\n")
    write(experiment / "traces" / "meta.yaml", "trace: 1\n")
    for uuid, name, status, stage, params, tags, metrics in RUNS:
        run = experiment / ("0" + uuid if uuid == CHILD else uuid)
        end = "null" if status == "RUNNING" else END_MS
        write(
            run / "meta.yaml",
            f"artifact_uri: file://{run}/artifacts\nend_time: {end}\nlifecycle_stage: {stage}\n"
            f"run_id: {uuid}\nrun_name: {name}\nstart_time: {START_MS}\n"
            f"status: {STATUS_NUMBERS[status]}\ntags: []\n",
        )
        for kind, entries in (("params", params), ("tags", tags)):
            for key, value in entries.items():
                write(run / kind / key, value)
        for key, points in metrics.items():
            write(run / "metrics" / key, "".join(f"{t} {v} {s}\n" for t, v, s in points))
    write(experiment / PARENT / "artifacts" / "notes" / "a.txt", "hello")
    (experiment / PARENT / "artifacts" / "secret").symlink_to("/etc/passwd")
    return folder


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


SCHEMA = """
CREATE TABLE experiments (experiment_id INTEGER NOT NULL, name VARCHAR(256) NOT NULL,
    lifecycle_stage VARCHAR(32));
CREATE TABLE runs (run_uuid VARCHAR(32) NOT NULL, name VARCHAR(250), status VARCHAR(9), start_time BIGINT,
    end_time BIGINT, lifecycle_stage VARCHAR(20), artifact_uri VARCHAR(200), experiment_id INTEGER);
CREATE TABLE metrics (key VARCHAR(250) NOT NULL, value FLOAT NOT NULL, timestamp BIGINT NOT NULL,
    run_uuid VARCHAR(32) NOT NULL, step BIGINT DEFAULT '0' NOT NULL, is_nan BOOLEAN DEFAULT '0' NOT NULL);
CREATE TABLE params (key VARCHAR(250) NOT NULL, value VARCHAR(8000) NOT NULL, run_uuid VARCHAR(32) NOT NULL);
CREATE TABLE tags (key VARCHAR(250) NOT NULL, value VARCHAR(8000), run_uuid VARCHAR(32) NOT NULL);
"""


def write_sqlite(folder: Path) -> Path:
    """The tables of a server's file that have runs."""
    folder.mkdir()
    write(folder / "artifacts" / PARENT / "notes" / "a.txt", "hello")
    (folder / "artifacts" / PARENT / "secret").symlink_to("/etc/passwd")
    database = sqlite3.connect(folder / "mlflow.db")
    database.executescript(SCHEMA)
    database.execute("INSERT INTO experiments VALUES (1, ?, 'active')", [EXPERIMENT])
    for uuid, name, status, stage, params, tags, metrics in RUNS:
        end = None if status == "RUNNING" else END_MS
        uri = str(folder / "artifacts" / uuid) if uuid != BAD else "s3://bucket/bad"
        database.execute(
            "INSERT INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, 1)",
            [uuid, name, status, START_MS, end, stage, uri],
        )
        for table, entries in (("params", params), ("tags", tags)):
            rows = [(key, value, uuid) for key, value in entries.items()]
            database.executemany(f"INSERT INTO {table} VALUES (?, ?, ?)", rows)
        for key, points in metrics.items():
            database.executemany(
                "INSERT INTO metrics VALUES (?, ?, ?, ?, ?, ?)",
                [(key, *as_sql(value), time, uuid, step, math.isnan(value)) for time, value, step in points],
            )
    database.commit()
    database.close()
    return folder / "mlflow.db"


def as_sql(value: float) -> tuple[float]:
    if math.isnan(value):
        return (0.0,)
    return (math.copysign(sys.float_info.max, value) if math.isinf(value) else value,)


@pytest.fixture
def trainer() -> Iterator[RestartedTrainer]:
    started = RestartedTrainer()
    started.start()
    yield started
    started.close()


def answers() -> MlflowAnswers:
    """A server with the runs."""
    histories = {
        (uuid, key): [{"key": key, "value": as_json(v), "timestamp": t, "step": s} for t, v, s in points]
        for uuid, *_, metrics in RUNS
        for key, points in metrics.items()
    }
    runs = [
        {
            "info": {
                "run_id": uuid,
                "run_uuid": uuid,
                "run_name": name,
                "experiment_id": "1",
                "status": status,
                "start_time": START_MS,
                **({} if status == "RUNNING" else {"end_time": END_MS}),
                "artifact_uri": f"mlflow-artifacts:/1/{uuid}/artifacts",
                "lifecycle_stage": stage,
            },
            "data": {
                "metrics": [histories[uuid, key][-1] for key in metrics],
                "params": [{"key": key, "value": value} for key, value in params.items()],
                "tags": [{"key": key, "value": value} for key, value in tags.items()],
            },
        }
        for uuid, name, status, stage, params, tags, metrics in RUNS
    ]
    experiments = [{"experiment_id": "0", "name": "Default"}, {"experiment_id": "1", "name": EXPERIMENT}]
    return MlflowAnswers(experiments, runs, histories, {PARENT: {"notes/a.txt": b"hello"}})


def as_json(value: float) -> float | str:
    """A server with a database stores infinities as the largest float."""
    return "NaN" if math.isnan(value) else as_sql(value)[0]


@pytest.fixture
def server() -> Iterator[MlflowAnswers]:
    with answers() as started:
        yield started


@pytest.fixture(params=["folder", "sqlite", "server"])
def source(request: pytest.FixtureRequest, tmp_path: Path, server: MlflowAnswers) -> Path | str:
    places: dict[str, Callable[[], Path | str]] = {
        "folder": lambda: write_folder(tmp_path / "store"),
        "sqlite": lambda: write_sqlite(tmp_path / "store"),
        "server": lambda: server.url,
    }
    return places[request.param]()


def import_from(
    trainer: RestartedTrainer, source: Path | str, *options: str, status: int = 0, **environment: str
) -> str:
    env = {"FLYWHEEL_TRAINER_ADDRESS": trainer.address, "COLUMNS": "300", **environment}
    result = CliRunner().invoke(app, ["runs", "import-mlflow", str(source), *options], env=env)
    assert status == result.exit_code, result.output
    return str(result.output)


def test_runs_are_imported_with_everything_they_have(trainer: RestartedTrainer, source: Path | str) -> None:
    output = import_from(trainer, source)
    assert "3 imported, 0 unchanged, 1 left out" in output
    assert "Of the 2 values of 'auc', the last of each step is kept." in output
    with fw.connect(trainer=trainer.address) as client:
        runs = {run.name.rpartition("-")[2]: run for run in client.search_runs()}
        assert {PARENT, CHILD, BAD} == set(runs)
        run = runs[PARENT]
        assert f"projects/default/experiments/{experiment_id(EXPERIMENT)}" == run.experiment
        assert ("first run", "# why\n", "c0ffee") == (run.display_name, run.notes, run.code_version)
        assert {"lr": "0.1", "long": "x" * 6_000, "group/inner": "1"} == dict(run.params)
        assert {"team": "a", "mlflow.source.git.commit": "c0ffee"} == dict(run.tags)
        assert (START_MS, END_MS) == (run.started_at.ToMilliseconds(), run.ended_at.ToMilliseconds())
        curves = {curve.key: curve for curve in client.run_curves(run.name)}
        assert [1 / (step + 1) for step in range(5)] == curves["val loss"].values
        assert [(START_MS + step) * 1000 for step in range(5)] == curves["val loss"].times
        assert ([0.75], [math.inf, -math.inf]) == (curves["auc"].values, curves["big"].values)
        assert math.isnan(curves["odd"].values[0])
        assert ["notes/a.txt"] == [artifact.name for artifact in run.artifacts], "no link is followed"
        states = [runs[uuid].state for uuid in (PARENT, CHILD, BAD)]
        assert [pb.RUN_STATE_SUCCEEDED, pb.RUN_STATE_SUCCEEDED, pb.RUN_STATE_FAILED] == states
        assert run.name == runs[CHILD].parent_run
        assert {"auc": 1.0} == dict(runs[CHILD].metrics)


def test_a_second_import_changes_nothing(trainer: RestartedTrainer, source: Path | str) -> None:
    import_from(trainer, source)
    with fw.connect(trainer=trainer.address) as client:
        before = client.search_runs()
        assert "0 imported, 3 unchanged, 1 left out" in import_from(trainer, source)
        assert before == client.search_runs()
        assert "1 imported, 3 unchanged, 0 left out" in import_from(trainer, source, "--include-running")
        (run,) = client.search_runs("state=CANCELLED")
        assert "was RUNNING in MLflow" == run.error_message


def test_an_interrupted_import_is_completed(trainer: RestartedTrainer, source: Path | str) -> None:
    import_from(trainer, source)
    with fw.connect(trainer=trainer.address) as client:
        complete = client.get_run(f"mlflow-{PARENT}")
        reopened = trainer.runs.record(RunName.parse(complete.name))
        reopened.rewind(1)
        reopened.reopen(reopened.heartbeat)
        assert "1 imported, 2 unchanged, 1 left out" in import_from(trainer, source)
        assert complete == client.get_run(f"mlflow-{PARENT}")


def test_runs_are_not_ended_while_the_server_does_not_give_a_file(
    trainer: RestartedTrainer, server: MlflowAnswers
) -> None:
    for call in ("runs/search", "metrics/get-history", "artifacts/list", "/get-artifact"):
        server.refused = {call: 503}
        assert "503: refused" in import_from(trainer, server.url, status=1)
    with fw.connect(trainer=trainer.address) as client:
        assert pb.RUN_STATE_RUNNING == client.get_run(f"mlflow-{PARENT}").state
        server.refused = {}
        assert "3 imported, 0 unchanged, 1 left out" in import_from(trainer, server.url)
        assert ["notes/a.txt"] == [a.name for a in client.get_run(f"mlflow-{PARENT}").artifacts]


def test_files_that_the_server_cannot_read_are_named(
    trainer: RestartedTrainer, server: MlflowAnswers
) -> None:
    server.refused = {"artifacts/list": 403}
    output = import_from(trainer, server.url)
    for uuid in (PARENT, CHILD, BAD):
        assert f"Artifacts at mlflow-artifacts:/1/{uuid}/artifacts are not copied" in output


def test_names_of_files_are_kept_or_refused(trainer: RestartedTrainer, server: MlflowAnswers) -> None:
    server.files = {PARENT: {"../a": b"1", "b c/ü.txt": b"2", "b c/d+e=f": b"3", "g": b""}}
    output = import_from(trainer, server.url)
    assert "'../a'" in output
    assert "'b c/ü.txt'" in output
    with fw.connect(trainer=trainer.address) as client:
        found = client.get_run(f"mlflow-{PARENT}").artifacts
        assert {"b c/d+e=f": 1, "g": 0} == {a.name: a.size_bytes for a in found}


def test_the_credentials_are_those_of_the_client_of_mlflow(
    trainer: RestartedTrainer, server: MlflowAnswers
) -> None:
    import_from(trainer, server.url, MLFLOW_TRACKING_TOKEN="secret")
    assert {"Bearer secret"} == server.authorizations
    server.authorizations.clear()
    import_from(trainer, server.url, MLFLOW_TRACKING_USERNAME="ada", MLFLOW_TRACKING_PASSWORD="pw")
    assert {"Basic YWRhOnB3"} == server.authorizations


def test_a_url_of_no_server_is_refused(trainer: RestartedTrainer, server: MlflowAnswers) -> None:
    for url in ("http://127.0.0.1:1", f"{server.url}/other", "https://", "http://user@host/"):
        assert import_from(trainer, url, status=1)


def test_a_damaged_run_does_not_stop_the_others(trainer: RestartedTrainer, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "mlruns")
    (file,) = folder.glob(f"*/{PARENT}/metrics/auc")
    whole = file.read_text()
    file.write_text(whole + "not a point\n")
    output = import_from(trainer, folder)
    assert "2 imported, 0 unchanged, 2 left out" in output
    assert "auc:3 is no point of a metric" in output.replace("\n", "")
    file.write_text(whole)
    assert "1 imported, 2 unchanged, 1 left out" in import_from(trainer, folder)
    found = trainer.runs.record(RunName("default", f"mlflow-{PARENT}")).run
    assert (0.75, "SUCCEEDED") == (found.metrics["auc"], found.state)


def test_what_is_no_store_is_refused(trainer: RestartedTrainer, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("text")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "none", tmp_path / "text", tmp_path / "folder"):
        assert str(path) in import_from(trainer, path, status=1).replace("\n", "")


def test_names_of_experiments_become_different_ids() -> None:
    assert "late" == experiment_id("late")
    names = ["Late", "late!", "läte", "/", "x" * 100, "1"]
    ids = [experiment_id(name) for name in names]
    assert len(set(ids)) == len(names)
    assert all(len(one) <= 63 and one.startswith("mlflow-") for one in ids)


def test_scalars_of_yaml_are_read(tmp_path: Path) -> None:
    write(
        tmp_path / "meta.yaml",
        "a: 'it''s'\nb: \"x\\u00e9\\n\"\nc: plain: text\nd: null\nlong: 'one\n  two'\n"
        "nested:\n  a: 1\ntags: []\ne: ''\n",
    )
    expected = {"a": "it's", "b": "xé\n", "c": "plain: text", "d": "null", "long": "one two", "e": ""}
    found = read_meta(tmp_path / "meta.yaml")
    assert expected == {key: found[key] for key in expected}
