"""Import from a real MLflow server, with PostgreSQL and S3 behind it.

`make acceptance` installs MLflow into an environment of its own.
"""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

import flywheel as fw
from bench.peers.mlflow_server import ENVIRONMENT, PEER, MlflowServer
from flywheel_local.postgres import Postgres
from flywheel_local.s3 import S3
from flywheel_protos.trainer.v1 import trainer_pb2
from flywheel_protos.types.v1 import value_pb2
from flywheel_registry.fakes.store import MemoryStore
from tests.support.builders.onnx_models import constant_half
from tests.support.commands import flywheel
from tests.support.peers.registry import serving_features
from tests.support.servers.registry import running_memory_registry
from tests.support.servers.restarted_trainer import RestartedTrainer

CLIENT = Path(__file__).parent / "clients" / "mlflow_client.py"
SET = "projects/default/featureSets/flights"


@pytest.fixture
def mlflow(postgres: Postgres, s3: S3, tmp_path: Path) -> Iterator[MlflowServer]:
    assert PEER.exists(), f"MLflow is not installed: `make acceptance` installs it into {PEER.parent}"
    with MlflowServer(postgres, s3, tmp_path, workers=1) as server:
        yield server


@pytest.fixture
def trainer() -> Iterator[RestartedTrainer]:
    started = RestartedTrainer()
    started.start()
    yield started
    started.close()


@pytest.fixture
async def addresses(trainer: RestartedTrainer) -> AsyncIterator[dict[str, str]]:
    """Where the services of this installation are."""
    async with running_memory_registry(MemoryStore()) as registry, serving_features() as features:
        features.sets[SET] = [value_pb2.Field(name="view__a", data_type="DATA_TYPE_FLOAT64")]
        yield {"trainer": trainer.address, "registry": registry.address, "feature": features.address}


def fill(server: MlflowServer, folder: Path) -> Any:
    """What the client of MLflow has logged and registered."""
    model = folder / "half.onnx"
    model.write_bytes(constant_half())
    command = [PEER / "python", CLIENT, server.url, model]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.timeout(500)
async def test_runs_and_models_of_an_mlflow_server_are_imported_once(
    mlflow: MlflowServer, addresses: dict[str, str], tmp_path: Path
) -> None:
    theirs = await asyncio.to_thread(fill, mlflow, tmp_path)
    command = ("runs", "import-mlflow", mlflow.url, "--feature-set", "flights")
    done = await flywheel(*command, **addresses)
    assert "2 imported, 0 unchanged, 1 left out" in done.output, done.output
    assert "Late Arrivals!/3 skipped" in done.output, "it has no ONNX file"
    async with fw.Client(**addresses) as client:
        parent = await client.get_run(f"mlflow-{theirs['parent']}")
        assert (theirs["params"], "# why") == (dict(parent.params), parent.notes)
        assert ("ops", "parent") == (parent.tags["team"], parent.display_name)
        assert trainer_pb2.RUN_STATE_SUCCEEDED == parent.state
        times = parent.started_at.ToMilliseconds(), parent.ended_at.ToMilliseconds()
        assert (theirs["start"], theirs["end"]) == times
        curves = {curve.key: curve for curve in await client.run_curves(parent.name)}
        loss = curves["loss"]
        points = [list(point) for point in zip(loss.steps, loss.values, loss.times, strict=True)]
        assert [[step, value, at * 1000] for step, value, at in theirs["loss"]] == points
        assert [float(step) for step in range(1000)] == curves["history"].values
        odd = curves["odd"].values
        assert math.isnan(odd[0])
        assert [math.inf, -math.inf] == odd[1:]
        names = [artifact.name for artifact in parent.artifacts]
        assert ["model/MLmodel", "model/model.onnx", "notes/a b.txt"] == sorted(names)
        file = await client.download_run_artifact(parent.name, "model/model.onnx", tmp_path / "model.onnx")
        assert constant_half() == file.read_bytes()
        child = await client.get_run(f"mlflow-{theirs['child']}")
        assert (parent.name, {"fold": "1"}) == (child.parent_run, dict(child.params))

        champion = await client.version_of_alias("late-arrivals", "champion")
        assert (parent.name, "the second") == (champion.training_run, champion.description)
        assert 0.75 == champion.metrics["auc"]
        versions = (await client.search_versions(models=["late-arrivals"])).items
        assert 2 == len(versions)
        runs = await client.search_runs()

        again = await flywheel(*command, **addresses)
        assert "0 imported, 2 unchanged, 1 left out" in again.output
        assert 2 == again.output.count("unchanged") - 1
        assert versions == (await client.search_versions(models=["late-arrivals"])).items
        assert runs == await client.search_runs()
