"""SCORE jobs, submitted by the SDK and run on a real Ray cluster, PostgreSQL, S3 and Redis."""

from __future__ import annotations

import hashlib
import io
import re
import textwrap
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from redis.asyncio import Redis

import flywheel as fw
from flywheel.errors import FlywheelError, JobFailedError
from flywheel_common.config import S3Settings
from flywheel_common.scoring.cached_prediction import decode, key_of
from flywheel_common.storage.s3 import object_store
from flywheel_protos.registry.v1 import model_pb2
from flywheel_protos.trainer.v1 import trainer_pb2 as pb
from flywheel_protos.types.v1 import value_pb2
from tests.support.builders.inference import onnx_model
from tests.support.builders.trainer import learnable_rows
from tests.support.peers.trainer import FEATURE_SET, MODEL, TRAINING_SET, Peers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(590)]
Start = Callable[[dict[str, str]], Awaitable[Any]]
GUIDE = Path(__file__).resolve().parents[3] / "docs" / "guides" / "batch-scoring.md"
WEIGHTS, BIAS, SLOPE, INTERCEPT, THRESHOLD = (0.05, -0.5), 0.25, 1.5, -0.1, 0.6


def register(peers: Peers) -> str:
    """A release of a model with the inputs v__x and v__z."""
    file, version = onnx_model(WEIGHTS, BIAS), f"{MODEL}/versions/1"
    peers.registry.files[version, "model.onnx"] = file
    peers.registry.versions[version] = model_pb2.ModelVersion(
        name=version,
        feature_set=FEATURE_SET,
        signature=model_pb2.Signature(
            inputs=[
                model_pb2.SignatureInput(name=name, data_type=value_pb2.DATA_TYPE_FLOAT64)
                for name in ("v__x", "v__z")
            ]
        ),
        artifacts=[
            model_pb2.Artifact(
                name="model.onnx", size_bytes=len(file), sha256=hashlib.sha256(file).hexdigest()
            )
        ],
    )
    platt = model_pb2.Calibration.Platt(slope=SLOPE, intercept=INTERCEPT)
    release = model_pb2.Release(
        name=f"{MODEL}/releases/1",
        model_version=version,
        feature_set=FEATURE_SET,
        calibration=model_pb2.Calibration(platt=platt),
        threshold=THRESHOLD,
    )
    peers.registry.releases[release.name] = release
    return release.name


async def run_guide(client: Any, bucket: str) -> dict[str, Any]:
    """Run the programs of docs/guides/batch-scoring.md as they are written there; returns their variables."""
    program = "\n".join(re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL))
    body = textwrap.indent(program.replace("s3://lake/", f"s3://{bucket}/"), "    ")
    names: dict[str, Any] = {}
    exec(f"async def guide(client):\n{body}\n    return locals()", names)
    found: dict[str, Any] = await names["guide"](client)
    return found


def expected(rows: pl.DataFrame) -> np.ndarray:
    """The calibrated probabilities, computed with numpy."""
    x, z = rows["v__x"].fill_null(0.0).to_numpy(), rows["v__z"].to_numpy()
    logit = WEIGHTS[0] * x + WEIGHTS[1] * z + BIAS
    return 1 / (1 + np.exp(-(SLOPE * logit + INTERCEPT)))


@pytest.fixture
async def client(
    trainer_settings: dict[str, str],
    with_peers: dict[str, str],
    with_ray: dict[str, str],
    redis_url: str,
    start_trainer: Start,
) -> Any:
    """The SDK's client of a trainer with an experiment and a Redis for predictions."""
    settings = trainer_settings | with_peers | with_ray
    settings["FLYWHEEL_TRAINER_CACHED_PREDICTIONS_URL"] = redis_url
    await start_trainer(settings)
    async with fw.Client(trainer=settings["FLYWHEEL_TRAINER_LISTEN"]) as client:
        request = pb.CreateExperimentRequest(parent="projects/default", experiment_id="late")
        await client.trainer.CreateExperiment(request)
        yield client


async def put_table(s3_settings: S3Settings, key: str, table: pl.DataFrame) -> None:
    content = io.BytesIO()
    table.write_parquet(content)
    async with object_store(s3_settings) as store:
        await store.put(key, content.getvalue())


async def test_a_table_is_scored_on_ray_and_cached_for_the_gateways(
    client: Any,
    peers: Peers,
    s3_settings: S3Settings,
    bucket: str,
    redis_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = learnable_rows(4000)
    await put_table(s3_settings, "users/tonight.parquet", rows.select("carrier"))
    register(peers)
    for name, value in (
        ("ENDPOINT", s3_settings.s3_endpoint),
        ("ACCESS_KEY", s3_settings.s3_access_key.get_secret_value()),
        ("SECRET_KEY", s3_settings.s3_secret_key.get_secret_value()),
    ):
        monkeypatch.setenv(f"FLYWHEEL_S3_{name}", value)
    guide = await run_guide(client, bucket)
    run, job = guide["run"], guide["job"]
    again = await client.run_job(job, request="nightly-2026-01-01")
    assert again.name == run.name
    # The features are joined once, for the whole table, as of the submission.
    assert (guide["applied"].created, guide["policy"].schedule.cron) == (True, "0 2 * * *")
    (build,) = {request.request_id: request for request in peers.feature.build_requests}.values()
    assert build.spine.file.uri == job.table
    assert build.spine.file.as_of.seconds > 0 and not build.spine.file.timestamp_field
    async with object_store(s3_settings) as store:
        prefix = run.params["predictions_uri"].removeprefix(f"s3://{bucket}/")
        keys = sorted([one.key async for one in store.list(prefix) if not one.key.endswith("/")])
        names = [key.removeprefix(prefix) for key in keys]
        assert names[0] == "_SUCCESS" and all(name.startswith("part-") for name in names[1:])
        found = pl.concat([pl.read_parquet(io.BytesIO(await store.get(key))) for key in keys[1:]])
    wanted = expected(rows)
    assert guide["predictions"].column("score").to_pylist() == found["score"].to_list()
    assert found["carrier"].equals(rows["carrier"])
    np.testing.assert_allclose(found["score"].to_numpy(), wanted, atol=1e-6)
    assert (found["decision"].to_numpy() == (wanted >= THRESHOLD)).all()
    assert found["error_reason"].null_count() == 4000
    # Rows are in time order: the last one of a carrier is its newest.
    last = dict(zip(rows["carrier"], wanted, strict=True))
    async with Redis.from_url(redis_url) as redis:
        for carrier, score in last.items():
            cached = decode(await redis.get(key_of(MODEL, carrier)))
            assert cached is not None
            assert cached.values == pytest.approx((score,), abs=1e-6)
            assert 25 * 3600 < await redis.ttl(key_of(MODEL, carrier)) <= 26 * 3600
    request = pb.ListJobsRequest(parent="projects/default")
    (ended,) = (await client.trainer.ListJobs(request)).jobs
    assert (ended.kind, ended.score.release) == ("SCORE", f"{MODEL}/releases/1")
    assert run.training_set == "" and [a.name for a in run.artifacts] == ["score.json"]
    assert TRAINING_SET.startswith("projects/")
    # The pipeline of the nightly policy scores with the release that serves.
    peers.registry.production = f"{MODEL}/releases/1"
    started = await client.run_pipeline("late-nightly", {"scheduled_at": "2013-06-01T02:00:00Z"})
    nightly = await client.wait_pipeline(started.name)
    assert ["champion", "score"] == [step.step for step in nightly.steps]
    scored = (await client.trainer.GetRun(pb.GetRunRequest(name=nightly.run))).run
    assert fw.read_table(scored.params["predictions_uri"]).num_rows == 4000
    assert peers.feature.build_requests[-1].spine.file.as_of.ToDatetime().isoformat() == "2013-06-01T02:00:00"


async def test_what_cannot_be_scored_is_refused_and_leaves_nothing(
    client: Any, peers: Peers, s3_settings: S3Settings, bucket: str
) -> None:
    release = register(peers)
    await put_table(s3_settings, "users/keyless.parquet", pl.DataFrame({"id": [1]}))
    await put_table(
        s3_settings, "users/empty.parquet", pl.DataFrame({"carrier": pl.Series([], dtype=pl.String)})
    )
    await put_table(s3_settings, "users/good.parquet", pl.DataFrame({"carrier": ["UA"]}))
    async with object_store(s3_settings) as store:
        await store.put("users/text.parquet", b"carrier\nUA\n")

    async def reason(table: str, release: str = release) -> str:
        job = fw.ScoreJob(release=release, table=f"s3://{bucket}/users/{table}", experiment="late")
        with pytest.raises(FlywheelError) as caught:
            await client.run_job(job)
        return str(caught.value.reason)

    assert await reason("keyless.parquet") == "WRONG_TABLE"
    assert await reason("empty.parquet") == "WRONG_TABLE"
    assert await reason("text.parquet") == "WRONG_TABLE"
    assert await reason("absent.parquet") == "UNKNOWN_TABLE"
    assert await reason("good.parquet", f"{MODEL}/releases/7") == "UNKNOWN_RELEASE"
    assert not (await client.trainer.ListJobs(pb.ListJobsRequest(parent="projects/default"))).jobs
    peers.feature.failure = ("WRONG_SPINE", "column 'carrier' is a struct")
    job = fw.ScoreJob(release=release, table=f"s3://{bucket}/users/good.parquet", experiment="late")
    with pytest.raises(JobFailedError, match=r"FEATURES_NOT_JOINED.*WRONG_SPINE.*struct"):
        await client.run_job(job)
    async with object_store(s3_settings) as store:
        assert [one.key async for one in store.list("predictions/")] == []
