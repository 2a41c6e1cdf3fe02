"""SCORE jobs read features point-in-time through the real feature service."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest

import flywheel as fw
from flywheel_common.clock import SystemClock
from flywheel_common.config import S3Settings
from flywheel_common.errors import FlywheelError
from flywheel_common.grpc.channel import channel
from flywheel_common.grpc.server import Server
from flywheel_common.storage.s3 import arrow_filesystem
from flywheel_feature.store.s3.tables import S3Tables
from flywheel_job import objects
from flywheel_job.launch import LaunchSpec
from flywheel_trainer.fakes.scoring import MemoryReleases
from flywheel_trainer.jobs.score import ScoreKind, ScoreSettings
from flywheel_trainer.jobs.score_spec import ScoreSpec
from flywheel_trainer.jobs.scoring_ports import ScoredRelease, ScoringPeers, StoredFile
from flywheel_trainer.jobs.train import TrainSettings
from flywheel_trainer.store.grpc.feature import GrpcFeature
from flywheel_trainer.store.grpc.feature_sets import GrpcFeatureSets
from flywheel_trainer.store.s3.table_shapes import ParquetShapes
from tests.support.builders.inference import run_onnx
from tests.support.builders.kinds import regression
from tests.support.builders.trainer import job
from tests.support.peers.inference import RegistryServicer, kind_release
from tests.support.training_job import run_here

START = datetime(2013, 1, 1, tzinfo=UTC)
RELEASE = "projects/test/models/late/releases/1"


def at(hour: float) -> datetime:
    return START + timedelta(hours=hour)


def definitions(bucket: str) -> Any:
    """The feature set of the regression: hist__delay of a batch view, trip__miles of the request."""
    carrier = fw.Entity("carrier", {"carrier": fw.STRING})
    source = fw.ParquetSource(
        "delays",
        {"carrier": fw.STRING, "hour": fw.TIMESTAMP, "delay": fw.FLOAT64},
        timestamp="hour",
        uri=f"s3://{bucket}/delays/",
    )
    view = fw.BatchView("hist", carrier, source, {"delay": fw.FLOAT64})
    request = fw.RequestSource("asked", {"miles": fw.FLOAT64})
    trip = fw.OnDemandView("trip", {"miles": "miles"}, requests=[request])
    both = fw.FeatureSet("late", ["hist:delay", "trip:miles"])
    return fw.compile_definitions([view, trip, both], "default")


def write_inputs(tables: S3Tables, bucket: str) -> None:
    """The delay of UA is 1 at noon and 5 an hour later; nothing is known of DL."""
    history = pl.DataFrame({"carrier": ["UA", "UA"], "hour": [at(12), at(13)], "delay": [1.0, 5.0]})
    tables.write(f"s3://{bucket}/delays/0.parquet", history)
    asked = pl.DataFrame(
        {
            "id": [7, 8, 9, 10],
            "miles": [0.5, 1.5, 2.5, 3.5],
            "carrier": ["UA", "UA", "DL", "UA"],
            "when": [at(12.5), at(14), at(14), at(11)],
        }
    )
    tables.write(f"s3://{bucket}/users/timed.parquet", asked)
    tables.write(f"s3://{bucket}/users/untimed.parquet", asked.drop("when"))


def minutes(delays: list[float], miles: list[float]) -> list[float]:
    """The answers of the regression, from ONNX Runtime; a null is NaN in its tensor."""
    model = regression()
    found = run_onnx(model.file, {"x": np.stack([delays, miles], axis=1)}, model.signature.output.tensor)
    return [float(value) for value in found]


@pytest.fixture
async def kind(client: fw.Client, server: Server, s3_settings: S3Settings, tables: S3Tables) -> Any:
    """The kind SCORE over the real feature service and S3, with one release."""
    bucket, model = s3_settings.s3_bucket, regression()
    await asyncio.to_thread(write_inputs, tables, bucket)
    await client.apply(definitions(bucket))
    release = kind_release(RegistryServicer(), 1, model)
    store = arrow_filesystem(s3_settings)
    stored = []
    for name, content in (("release", release.SerializeToString()), ("model.onnx", model.file)):
        objects.write(store, f"s3://{bucket}/stored/{name}", content)
        digest = hashlib.sha256(content).hexdigest()
        stored.append(StoredFile(name, f"s3://{bucket}/stored/{name}", digest))
    releases = MemoryReleases()
    feature_set = "projects/default/featureSets/late"
    inputs = tuple(one.name for one in model.signature.inputs)
    releases.known[RELEASE] = ScoredRelease(
        RELEASE, "projects/test/models/late", feature_set, inputs, stored[0], (stored[1],)
    )
    async with channel(f"127.0.0.1:{server.port}", client_name="tests", health_check=False) as connection:
        peers = ScoringPeers(
            GrpcFeature(connection), releases, GrpcFeatureSets(connection), ParquetShapes(lambda: store)
        )
        settings = ScoreSettings(TrainSettings(bucket, "python", "", 1.0), "")
        yield ScoreKind(peers, settings, SystemClock())


async def scored(kind: ScoreKind, settings: S3Settings, spec: ScoreSpec, number: str) -> pl.DataFrame:
    """The predictions of a job that runs in this process."""
    details = await kind.validate(spec)
    queued = replace(job(number), spec=spec, kind="SCORE")
    queued = replace(queued, name=replace(queued.name, project="default"))
    async with asyncio.timeout(60):
        while (prepared := await kind.prepare(queued, details)).details is None:
            assert prepared.error is None, prepared.error
            await asyncio.sleep(0.05)
    launch = kind.launch(queued, prepared.details, 1)
    launched = LaunchSpec.from_json(launch.files["spec.json"])
    store = arrow_filesystem(settings)
    outcome = await asyncio.to_thread(run_here, launched, store)
    assert outcome.succeeded, outcome.error_message
    (path,) = objects.files_under(store, outcome.params["predictions_uri"], ".parquet")
    return pl.read_parquet(store.open_input_file(path))


async def test_features_of_each_row_are_those_of_its_time(kind: ScoreKind, s3_settings: S3Settings) -> None:
    table = f"s3://{s3_settings.s3_bucket}/users/timed.parquet"
    spec = ScoreSpec("late", RELEASE, table, timestamp_field="when")
    found = await scored(kind, s3_settings, spec, "1")
    assert found.columns == ["carrier", "event_timestamp", "id", "miles", "score", "error_reason"]
    assert found["id"].to_list() == [7, 8, 9, 10]
    assert found["event_timestamp"].to_list() == [at(12.5), at(14), at(14), at(11)]
    nan = float("nan")
    wanted = minutes([1.0, 5.0, nan, nan], [0.5, 1.5, 2.5, 3.5])
    assert found["score"].to_list() == [pytest.approx(v, abs=1e-9) if v == v else None for v in wanted]
    # The regression has no answer without a delay.
    assert found["error_reason"].to_list() == [None, None, "BAD_SCORE", "BAD_SCORE"]


async def test_features_of_a_table_without_times_are_those_of_one_time(
    kind: ScoreKind, s3_settings: S3Settings
) -> None:
    table = f"s3://{s3_settings.s3_bucket}/users/untimed.parquet"
    noon = int(at(12.25).timestamp() * 1e6)
    found = await scored(kind, s3_settings, ScoreSpec("late", RELEASE, table, as_of_micros=noon), "1")
    assert found["score"].drop_nulls().to_list() == pytest.approx(minutes([1.0] * 3, [0.5, 1.5, 3.5]))
    assert set(found["event_timestamp"]) == {at(12.25)}
    latest = await scored(kind, s3_settings, ScoreSpec("late", RELEASE, table), "2")
    assert latest["score"].drop_nulls().to_list() == pytest.approx(minutes([5.0] * 3, [0.5, 1.5, 3.5]))
    age = datetime.now(UTC) - latest["event_timestamp"][0]
    assert timedelta(0) < age < timedelta(minutes=5)


async def test_a_table_that_the_feature_service_refuses_ends_the_job(
    kind: ScoreKind, s3_settings: S3Settings, tables: S3Tables
) -> None:
    table = f"s3://{s3_settings.s3_bucket}/users/struct.parquet"
    nested = pl.DataFrame({"carrier": ["UA"], "miles": [1.0], "extra": [{"a": 1}]})
    await asyncio.to_thread(tables.write, table, nested)
    spec = ScoreSpec("late", RELEASE, table)
    details = await kind.validate(spec)
    queued = replace(job(), spec=spec, kind="SCORE")
    queued = replace(queued, name=replace(queued.name, project="default"))
    error: FlywheelError | None = (await kind.prepare(queued, details)).error
    assert error is not None and error.reason == "FEATURES_NOT_JOINED"
    assert "WRONG_SPINE" in error.message and "'extra'" in error.message
