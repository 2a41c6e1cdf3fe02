"""Export and import of models by the SDK and the CLI, between two registries in memory, and from MLflow."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import flywheel as fw
from flywheel.errors import Unavailable
from flywheel.mlflow_import import model_id, onnx_file, read_versions
from flywheel.model_archive import ORIGIN, read_archive
from flywheel.onnx_weights import one_file
from flywheel_protos.registry.v1 import model_pb2, registry_pb2
from flywheel_protos.types.v1 import value_pb2
from flywheel_registry.fakes.store import MemoryStore
from tests.support.builders.onnx_models import constant_half, with_weights_outside
from tests.support.builders.registry import ModelClient
from tests.support.commands import flywheel
from tests.support.mlflow_answers import MlflowAnswers
from tests.support.peers.registry import serving_features
from tests.support.servers.registry import running_memory_registry

SET = "projects/default/featureSets/flights"


@pytest.fixture
async def here(client: ModelClient) -> AsyncIterator[fw.Client]:
    async with fw.Client(registry=client.stub.address) as opened:
        yield opened


@pytest.fixture
async def there() -> AsyncIterator[fw.Client]:
    """A client of another installation."""
    async with (
        running_memory_registry(MemoryStore()) as stub,
        serving_features() as features,
        fw.Client(registry=stub.address, feature=features.address) as opened,
    ):
        features.sets[SET] = [value_pb2.Field(name="view__a", data_type="DATA_TYPE_FLOAT64")]
        yield opened


def command(client: fw.Client, *words: str) -> Any:
    addresses = {service: client._addresses[service] for service in ("registry", "feature")}
    return flywheel("models", *words, **addresses)


async def model(client: ModelClient) -> None:
    """Two versions, the first serves, the second has an alias."""
    await client.create(description="why", gate_policy=model_pb2.GatePolicy(min_evaluation_rows=10))
    await client.champion(b"first")
    await client.staged(b"second")


async def version(client: fw.Client, number: int) -> model_pb2.ModelVersion:
    request = registry_pb2.GetModelVersionRequest(name=f"projects/default/models/late/versions/{number}")
    found: model_pb2.ModelVersion = (await client.registry.GetModelVersion(request)).model_version
    return found


async def test_a_model_moves_with_digests_signature_evidence_and_audit(
    client: ModelClient, here: fw.Client, there: fw.Client, tmp_path: Path
) -> None:
    await model(client)
    await here.set_alias("best", "late/2")
    exported = await command(here, "export", "late", str(tmp_path / "late.zip"))
    assert (0, True) == (exported.exit_code, "2 versions, 2 releases" in exported.output), exported.output
    imported = await command(there, "import", str(tmp_path / "late.zip"))
    assert (0, 4) == (imported.exit_code, imported.output.count("->")), imported.output
    for number in (1, 2):
        old, new = await version(here, number), await version(there, number)
        assert (old.signature, old.golden_rows, old.metrics) == (new.signature, new.golden_rows, new.metrics)
        assert old.artifacts[0] == new.artifacts[0]
        assert (old.name, model_pb2.STAGE_NONE) == (new.tags["imported_from"], new.stage)
        back = await there.download_artifact(new.name, "model.onnx", tmp_path / "back")
        assert constant_half([b"first", b"second"][number - 1]) == back.read_bytes()
    origin = await there.download_artifact((await version(there, 1)).name, ORIGIN, tmp_path / "origin")
    history = json.loads(origin.read_text())
    assert [e.hash for e in await client.audit()][: len(history["audit"])] == [
        e["hash"] for e in history["audit"]
    ]
    assert {"OFFLINE"} == {one["kind"] for one in history["evidence"]}
    assert (await version(there, 2)).name == (await there.version_of_alias("late", "best")).name
    assert (await there.promote("late/1")).passed


async def test_an_import_that_broke_off_goes_on(
    client: ModelClient, here: fw.Client, there: fw.Client, tmp_path: Path
) -> None:
    await model(client)
    await here.export_model("late", tmp_path / "late.zip")
    first = await there.import_model(tmp_path / "late.zip")
    again = await there.import_model(tmp_path / "late.zip")
    assert first.versions == again.versions


@pytest.mark.parametrize(
    "member", ["audit/00000002.json", "evidence/00000001.json", "versions/00000001.json"]
)
async def test_a_changed_archive_is_refused(
    client: ModelClient, here: fw.Client, there: fw.Client, tmp_path: Path, member: str
) -> None:
    await model(client)
    await here.export_model("late", tmp_path / "late.zip")
    changed = tmp_path / "changed.zip"

    def change(*, also_the_manifest: bool) -> None:
        with zipfile.ZipFile(tmp_path / "late.zip") as source, zipfile.ZipFile(changed, "w") as target:
            members = {name: source.read(name) for name in source.namelist()}
            body = json.loads(members[member])
            body["actor" if "audit" in member else "producer" if "evidence" in member else "description"] = (
                "x"
            )
            members[member] = json.dumps(body).encode()
            if also_the_manifest:
                manifest = json.loads(members["manifest.json"])
                manifest["members"][member] = hashlib.sha256(members[member]).hexdigest()
                members["manifest.json"] = json.dumps(manifest).encode()
            for name, data in members.items():
                target.writestr(name, data)

    change(also_the_manifest=False)
    with pytest.raises(ValueError, match="not what the manifest declares"):
        await there.import_model(changed)
    if "versions" not in member:
        change(also_the_manifest=True)
        with pytest.raises(ValueError, match=r"audit .* is not intact"):
            await there.import_model(changed)


def test_a_file_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"no zip")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as opened:
        opened.writestr("manifest.json", json.dumps({"format": 2}))
    for name in ("a.zip", "b.zip"):
        with pytest.raises(ValueError, match=r"no archive|has format"):
            read_archive(tmp_path / name)


def mlflow_database(path: Path, folder: Path) -> Path:
    """The tables of MLflow 3 with two versions: an ONNX model with an alias, and a pickled one."""
    with sqlite3.connect(path) as opened:
        opened.executescript(
            """
            CREATE TABLE registered_models (name TEXT PRIMARY KEY, description TEXT);
            CREATE TABLE model_versions (name TEXT, version INTEGER, description TEXT, user_id TEXT,
              current_stage TEXT, source TEXT, run_id TEXT, status TEXT, storage_location TEXT);
            CREATE TABLE model_version_tags (key TEXT, value TEXT, name TEXT, version INTEGER);
            CREATE TABLE registered_model_aliases (alias TEXT, version INTEGER, name TEXT);
            CREATE TABLE latest_metrics (key TEXT, value REAL, timestamp INTEGER, step INTEGER,
              is_nan BOOLEAN, run_uuid TEXT);
            INSERT INTO latest_metrics VALUES ('auc', 0.75, 0, 0, 0, 'r1'), ('loss', 0, 0, 0, 1, 'r1');
            INSERT INTO model_version_tags VALUES ('team', 'ops', 'Late Arrivals!', 1);
            INSERT INTO registered_model_aliases VALUES ('Champion', 1, 'Late Arrivals!');
            """
        )
        rows = [
            ("Late Arrivals!", 1, "first", None, "None", "models:/m-1", "r1", "READY", f"file://{folder}"),
            ("Late Arrivals!", 2, None, None, "None", str(path.parent / "none"), None, "READY", None),
            ("Late Arrivals!", 3, None, None, "Deleted_Internal", "x", None, "READY", None),
        ]
        opened.executemany("INSERT INTO model_versions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
    return path


async def test_onnx_models_of_mlflow_are_imported(there: fw.Client, tmp_path: Path) -> None:
    folder = tmp_path / "my model"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(constant_half())
    database = mlflow_database(tmp_path / "mlflow.db", folder)
    done = await command(there, "import-mlflow", str(database), "--feature-set", "flights")
    assert 1 == done.exit_code
    assert "Late Arrivals!/1 -> projects/default/models/late-arrivals/versions/1" in done.output
    assert "Late Arrivals!/2 skipped" in done.output
    assert "0 ONNX files" in done.output
    found = await there.version_of_alias("late-arrivals", "champion")
    assert ({"auc": 0.75}, "first", "ops", "r1") == (
        dict(found.metrics),
        found.description,
        found.tags["team"],
        found.tags["mlflow_run"],
    )


async def test_models_of_an_mlflow_server_are_imported_once(there: fw.Client) -> None:
    server = mlflow_answers()
    with server:
        arguments = ("import-mlflow", server.url, "--feature-set", "flights")
        done = await command(there, *arguments)
        assert 1 == done.exit_code
        assert "Late Arrivals!/1 -> projects/default/models/late-arrivals/versions/1" in done.output
        assert "Late Arrivals!/2 skipped It has no ONNX flavor" in done.output
        found = await there.version_of_alias("late-arrivals", "the-champion")
        assert ({"auc": 0.75}, "first", "ops", "r1") == (
            dict(found.metrics),
            found.description,
            found.tags["team"],
            found.tags["mlflow_run"],
        )
        before = (await there.search_versions(models=["late-arrivals"])).items
        done = await command(there, *arguments)
        assert "Late Arrivals!/1 -> projects/default/models/late-arrivals/versions/1 unchanged" in done.output
        assert before == (await there.search_versions(models=["late-arrivals"])).items


async def test_models_with_weights_in_other_files_are_imported_as_one_file(
    there: fw.Client, tmp_path: Path
) -> None:
    file = with_weights_outside(constant_half(), tmp_path / "my model")
    database = mlflow_database(tmp_path / "mlflow.db", file.parent)
    (name,) = (await there.import_mlflow(database, feature_set="flights")).versions.values()
    stored = tmp_path / "stored.onnx"
    await there.download_artifact(name, "model.onnx", stored)
    assert one_file(file) == stored.read_bytes()

    with mlflow_answers() as server:
        files = server.version_files["Late Arrivals!", 1]
        content, weights = file.read_bytes(), (file.parent / "model.bin").read_bytes()
        described = files["MLmodel"].replace(b"m.onnx", b"data/m.onnx")
        files = {"MLmodel": described, "data/m.onnx": content, "data/model.bin": weights}
        server.version_files = {**server.version_files, ("Late Arrivals!", 4): files}
        server.versions = [{**server.versions[0], "version": "4"}]
        done = await there.import_mlflow(server.url, feature_set="flights")
        assert ["Late Arrivals!/4"] == list(done.versions), done.skipped
        server.version_files["Late Arrivals!", 5] = {"MLmodel": described, "data/m.onnx": content}
        server.versions = [{**server.versions[0], "version": "5"}]
        done = await there.import_mlflow(server.url, feature_set="flights")
        assert ["Late Arrivals!/5"] == list(done.skipped)
        assert "data/model.bin" in done.skipped["Late Arrivals!/5"]


async def test_an_interrupted_import_of_a_model_is_completed(there: fw.Client) -> None:
    with mlflow_answers() as server:
        upload = there.upload_artifact

        async def broken(*_arguments: object) -> Any:
            raise Unavailable("the connection broke off")

        there.upload_artifact = broken  # type: ignore[method-assign]
        done = await there.import_mlflow(server.url, feature_set="flights")
        assert {"Late Arrivals!/1", "Late Arrivals!/2"} == set(done.skipped)
        there.upload_artifact = upload  # type: ignore[method-assign]
        runs = {"r1": "projects/default/runs/mlflow-1"}
        done = await there.import_mlflow(server.url, feature_set="flights", training_runs=runs)
        assert {"Late Arrivals!/1": "projects/default/models/late-arrivals/versions/1"} == done.versions
        found = await there.version_of_alias("late-arrivals", "the-champion")
        assert "projects/default/models/late-arrivals/versions/1" == found.name
        assert model_pb2.ARTIFACT_STATE_READY == found.artifact_state


async def test_an_alias_that_was_moved_here_is_not_moved_back(there: fw.Client) -> None:
    with mlflow_answers() as server:
        runs = {"r1": "projects/default/runs/mlflow-1"}
        done = await there.import_mlflow(server.url, feature_set="flights", training_runs=runs)
        first = done.versions["Late Arrivals!/1"]
        named = await there.version_of_alias("late-arrivals", "the-champion")
        assert (first, "projects/default/runs/mlflow-1") == (named.name, named.training_run)
        server.versions = [*server.versions, {**server.versions[0], "version": "3"}]
        of_first = server.version_files["Late Arrivals!", 1]
        server.version_files = {**server.version_files, ("Late Arrivals!", 3): of_first}
        third = (await there.import_mlflow(server.url, feature_set="flights")).versions["Late Arrivals!/3"]
        await there.set_alias("the-champion", third)
        done = await there.import_mlflow(server.url, feature_set="flights")
        assert {"Late Arrivals!/1": first, "Late Arrivals!/3": third} == done.unchanged
        assert third == (await there.version_of_alias("late-arrivals", "the-champion")).name


def mlflow_answers() -> MlflowAnswers:
    """A server with two versions: an ONNX model with an alias, and a pickled one."""
    version = {"name": "Late Arrivals!", "version": "1", "description": "first", "run_id": "r1"}
    tags = [{"key": "team", "value": "ops"}]
    metrics = [{"key": "auc", "value": 0.75}, {"key": "loss", "value": "NaN"}]
    described = (
        b"artifact_path: model\nflavors:\n  onnx:\n    code: null\n    data: m.onnx\n"
        b"  python_function:\n    data: no.onnx\n"
    )
    return MlflowAnswers(
        runs=[{"info": {"run_id": "r1"}, "data": {"metrics": metrics}}],
        models=[{"name": "Late Arrivals!", "aliases": [{"alias": "The_Champion", "version": "1"}]}],
        versions=[
            {**version, "tags": tags},
            {**version, "version": "2", "run_id": "", "description": ""},
        ],
        version_files={
            ("Late Arrivals!", 1): {"MLmodel": described, "m.onnx": constant_half()},
            ("Late Arrivals!", 2): {"MLmodel": b"flavors:\n  sklearn:\n    data: model.onnx\n"},
        },
    )


def test_mlflow_locations_stay_within_the_artifacts(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "m.onnx").write_bytes(b"")
    assert tmp_path / "1" / "m.onnx" == onnx_file("mlflow-artifacts:/1", tmp_path)
    for location in ("mlflow-artifacts:/../..", "s3://bucket/a", "mlflow-artifacts:/2"):
        with pytest.raises(ValueError, match=r"outside|no local folder|0 ONNX"):
            onnx_file(location, tmp_path)
    with pytest.raises(ValueError, match="no database"):
        list(read_versions(tmp_path / "none.db"))
    assert ["late-arrivals", "m-1st"] == [model_id("Late Arrivals!"), model_id("1st")]
