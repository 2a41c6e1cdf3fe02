"""The synchronous client has every call of the asynchronous one, in scripts and inside of a running loop."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import flywheel as fw
from flywheel.errors import NotFound
from flywheel_protos.trainer.v1 import tracking_pb2
from flywheel_protos.trainer.v1 import trainer_pb2 as pb
from tests.support.servers.restarted_trainer import RestartedTrainer


@pytest.fixture(scope="module")
def trainer() -> Iterator[RestartedTrainer]:
    started = RestartedTrainer()
    started.start()
    yield started
    started.close()


@pytest.fixture
def client(trainer: RestartedTrainer) -> Iterator[fw.SyncClient]:
    with fw.connect(trainer=trainer.address) as opened:
        yield opened


def test_every_call_of_the_client_has_its_name_and_signature(client: fw.SyncClient) -> None:
    methods = [name for name, method in inspect.getmembers(fw.Client, callable) if not name.startswith("_")]
    assert len(methods) > 20
    assert set(methods) <= set(dir(client))
    for name in methods:
        expected = inspect.signature(getattr(fw.Client("default"), name))
        assert expected == inspect.signature(getattr(client, name)), name


def test_calls_return_results_and_raise_errors(client: fw.SyncClient) -> None:
    experiment = client.create_experiment("late", description="why")
    assert ("projects/default/experiments/late", "why") == (experiment.name, experiment.description)
    listed = client.trainer.ListExperiments(pb.ListExperimentsRequest(parent=client.parent))
    assert [experiment] == list(listed.experiments)
    assert "projects/default/runs/x" == client.path("runs", "x")
    with pytest.raises(NotFound):
        client.trainer.GetRun(pb.GetRunRequest(name="projects/default/runs/none"))


async def test_a_notebook_whose_loop_runs_can_use_it(client: fw.SyncClient) -> None:
    assert client.create_experiment("notebook").name.endswith("notebook")


def test_streams_are_iterators(client: fw.SyncClient, trainer: RestartedTrainer, tmp_path: Path) -> None:
    client.create_experiment("streams")
    options: Any = {"address": trainer.address, "spool": tmp_path, "system_metrics": False}
    with fw.run("streams", **options) as run:
        run.log_text("x" * 3_000_000, "a.txt")
    request = tracking_pb2.DownloadRunArtifactRequest(run=run.name, artifact="a.txt")
    chunks = list(client.trainer.DownloadRunArtifact(request))
    assert len(chunks) > 1
    assert b"x" * 3_000_000 == b"".join(chunk.data for chunk in chunks)
    # A stream that is left early is closed.
    assert next(iter(client.trainer.DownloadRunArtifact(request))).data
