"""SCORE jobs: what is refused before anything runs, the join of features, the launch, and progress."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from flywheel_common.clock import ManualClock
from flywheel_common.errors import FlywheelError
from flywheel_job.batch_scoring.spec import CACHE_URL
from flywheel_protos.trainer.v1 import trainer_pb2 as pb
from flywheel_trainer.encoding.specs import spec_from_json, spec_of, spec_to_json
from flywheel_trainer.fakes.feature import MemoryFeature
from flywheel_trainer.fakes.scoring import MemoryFeatureSets, MemoryReleases, MemoryShapes
from flywheel_trainer.jobs.attempt import Attempt
from flywheel_trainer.jobs.job import Job
from flywheel_trainer.jobs.limits import Limits
from flywheel_trainer.jobs.ports import TrainingSet
from flywheel_trainer.jobs.score import ScoreKind, ScoreSettings
from flywheel_trainer.jobs.score_spec import ScoreSpec
from flywheel_trainer.jobs.scoring_ports import (
    ScoredRelease,
    ScoringPeers,
    SetFields,
    StoredFile,
    TableShape,
)
from flywheel_trainer.jobs.train import TrainSettings
from tests.support.builders import trainer as build
from tests.support.builders.trainer import AT
from tests.support.granted_addresses import refused_addresses

RELEASE = "projects/p/models/late/releases/3"
FEATURE_SET = "projects/p/featureSets/late/versions/1"
TABLE = "s3://users/tonight/"
JOINED = TrainingSet("projects/p/trainingSets/t", "s3://f/sets/t/", (), 2, "ab", FEATURE_SET)
SPEC = ScoreSpec("late", RELEASE, TABLE, cache_ttl_seconds=3600)
MICROS = 1_767_225_600_000_000


class World:
    """A kind whose peers know one release, its feature set and one table."""

    def __init__(self, cache_url: str = "redis://:secret@r:6379/0") -> None:
        self.feature = MemoryFeature({FEATURE_SET: JOINED.name}, running_reads=1)
        self.feature.known[JOINED.name] = JOINED
        self.releases, self.sets, self.shapes = MemoryReleases(), MemoryFeatureSets(), MemoryShapes()
        message = StoredFile("release", "s3://b/artifacts/aa", "aa")
        files = (StoredFile("model.onnx", "s3://b/artifacts/bb", "bb"),)
        self.releases.known[RELEASE] = ScoredRelease(
            RELEASE, "projects/p/models/late", FEATURE_SET, ("v__x",), message, files
        )
        self.sets.known[FEATURE_SET] = SetFields(("carrier",), ("miles",))
        self.shapes.known[TABLE] = TableShape(("id", "miles", "carrier", "at"), 2)
        self.clock = ManualClock(AT)
        peers = ScoringPeers(self.feature, self.releases, self.sets, self.shapes)
        jobs = TrainSettings("b", "python", "trainer:7103", 2.0)
        self.kind = ScoreKind(peers, ScoreSettings(jobs, cache_url), self.clock)


def job(spec: ScoreSpec = SPEC) -> Job:
    return replace(build.job(), spec=spec, kind="SCORE")


async def refusal(world: World, **changes: Any) -> FlywheelError:
    with pytest.raises(FlywheelError) as caught:
        await world.kind.validate(replace(SPEC, **changes))
    return caught.value


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("experiment", {"experiment": ""}),
        ("release", {"release": "projects/p/models/late"}),
        ("table_uri", {"table_uri": "/etc/passwd"}),
        ("as_of", {"as_of_micros": 1, "timestamp_field": "at"}),
        ("cache_ttl", {"cache_ttl_seconds": 0.5}),
        ("cache_ttl", {"cache_ttl_seconds": 400 * 86_400.0}),
        ("cache_ttl", {"release": "projects/p/models/late/versions/3"}),
        ("workers", {"workers": 2000}),
        ("partition_rows", {"partition_rows": 10}),
        ("timeout", {"limits": Limits(timeout_seconds=0)}),
    ],
)
async def test_a_wrong_field_is_named(field: str, changes: Any) -> None:
    error = await refusal(World(), **changes)
    assert error.reason == "INVALID_SPEC"
    assert f"score.{field}" in error.message


async def test_a_time_beyond_the_clock_skew_is_refused() -> None:
    error = await refusal(World(), as_of_micros=MICROS + 301_000_000)
    assert error.reason == "OUT_OF_RANGE"


@pytest.mark.parametrize(
    ("columns", "rows", "column"),
    [
        (("id", "miles"), 2, "carrier"),
        (("id", "carrier"), 2, "miles"),
        (("carrier", "miles", "score"), 2, "score"),
        (("carrier", "miles", "error_reason"), 2, "error_reason"),
        (("carrier", "miles", "v__x"), 2, "v__x"),
        (("carrier", "miles", "event_timestamp"), 2, "event_timestamp"),
        (("carrier", "miles"), 0, "no rows"),
    ],
)
async def test_a_table_that_does_not_fit_is_refused(columns: Any, rows: int, column: str) -> None:
    world = World()
    world.shapes.known[TABLE] = TableShape(columns, rows)
    error = await refusal(world)
    assert error.reason == "WRONG_TABLE"
    assert column in error.message


async def test_the_time_column_of_a_table_is_required_and_may_have_any_name() -> None:
    world = World()
    assert "'when'" in (await refusal(world, timestamp_field="when")).message
    world.shapes.known[TABLE] = TableShape(("carrier", "miles", "event_timestamp"), 2)
    details = await world.kind.validate(replace(SPEC, timestamp_field="event_timestamp"))
    assert details["carried"] == ["carrier", "event_timestamp", "miles"]


@pytest.mark.parametrize(
    ("reason", "changes", "cache"),
    [
        ("UNKNOWN_RELEASE", {"release": "projects/p/models/late/releases/9"}, "redis://r"),
        ("UNKNOWN_TABLE", {"table_uri": "s3://users/none/"}, "redis://r"),
        ("NO_PREDICTION_CACHE", {}, ""),
    ],
)
async def test_what_does_not_exist_is_refused_at_submission(reason: str, changes: Any, cache: str) -> None:
    assert (await refusal(World(cache), **changes)).reason == reason


async def test_features_are_joined_once_as_of_the_submission() -> None:
    world = World()
    details = await world.kind.validate(SPEC)
    assert details["as_of_micros"] == MICROS
    waiting = await world.kind.prepare(job(), details)
    assert waiting.details is None and waiting.error is None
    assert "joins the features" in waiting.message
    ready = await world.kind.prepare(job(), details)
    assert ready.details is not None
    assert (ready.details["uri"], ready.details["training_set"]) == (JOINED.uri, JOINED.name)
    again = World().kind  # another process continues with the same join
    again._peers = world.kind._peers
    repeated = await again.prepare(job(), details)
    assert repeated.details == ready.details
    assert len(world.feature._jobs) == 1


async def test_a_failed_join_ends_the_job_with_its_reason() -> None:
    world = World()
    world.feature.failure = "WRONG_SPINE: the table has no column 'carrier'"
    details = await world.kind.validate(SPEC)
    await world.kind.prepare(job(), details)
    failed = await world.kind.prepare(job(), details)
    assert failed.error is not None
    assert failed.error.reason == "FEATURES_NOT_JOINED"
    assert "no column 'carrier'" in failed.error.message


async def test_the_launch_has_no_secret_in_its_files() -> None:
    world = World()
    details = {**await world.kind.validate(SPEC), "uri": JOINED.uri, "training_set": JOINED.name}
    launch = world.kind.launch(job(), details, 2)
    content = json.loads(launch.files["spec.json"])
    assert "secret" not in launch.files["spec.json"].decode()
    assert refused_addresses(job().name, 2, launch) == []
    assert launch.environment == {CACHE_URL: "redis://:secret@r:6379/0"}
    assert content["params"]["predictions_uri"] == "s3://b/predictions/p/job-1/"
    assert content["params"]["carried"] == ["carrier", "event_timestamp", "id", "miles", "at"]
    assert (content["attempt"], content["workers"], content["resources"]["cpus"]) == (2, 1, 2.0)
    assert world.kind.launch(job(replace(SPEC, cache_ttl_seconds=0)), details, 1).environment == {}


def test_progress_tells_the_time_that_is_left() -> None:
    world = World()
    running = replace(job(), attempts=(Attempt(2, "job-1-2", AT, AT),))
    world.clock.advance(60)
    steps = {"rows_total": 1000, "rows_resumed": 400, "rows_done": 500}
    progress = world.kind.progress(running, steps)
    # 100 rows in 60 s, 500 are left.
    assert progress == {"done": 500, "total": 1000, "unit": "rows", "message": "about 5 min left"}
    assert world.kind.progress(running, {})["message"] == ""
    done = world.kind.progress(running, steps | {"rows_done": 1000, "rows_cached": 999})
    assert (done["done"], done["message"]) == (1000, "999 predictions are cached")


def test_a_specification_is_equal_after_storage() -> None:
    spec = replace(SPEC, as_of_micros=MICROS + 1, workers=2, partition_rows=5000, limits=Limits(60, 30, 2))
    assert spec_from_json(spec_to_json(spec, "p")) == spec
    assert spec_from_json(spec_to_json(replace(SPEC, timestamp_field="at"), "p")).timestamp_field == "at"


def test_absent_fields_have_their_defaults() -> None:
    message = pb.Job()
    message.score.release = RELEASE
    found = spec_of(message)
    assert found == ScoreSpec("", RELEASE, "")
    assert timedelta(seconds=found.limits.timeout_seconds) == timedelta(hours=24)
