"""Predict late arrivals of the flights that left New York in 2013, and keep the model good through the year.

    python examples/flights/main.py            # against a running platform (make up); make run does both
    SCOPE=year python examples/flights/main.py # every flight instead of a fixed sample

January to March are history: features, a training set, a first model. Then the rest of the year is replayed hour by
hour: events arrive when they became known, predictions are asked for at the top of each flight's scheduled hour,
labels come when it lands. Everything else happens by itself.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from datetime import UTC, datetime, timedelta

import data
import features
import numpy as np
import polars as pl
import pyarrow.parquet as pq
from google.protobuf.duration_pb2 import Duration
from pyarrow import fs
from report import Story
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score

import flywheel as fw
from flywheel_protos.feature.v1 import feature_pb2
from flywheel_protos.feature.v1 import training_set_pb2 as ts
from flywheel_protos.monitor.v1 import monitor_pb2
from flywheel_protos.registry.v1 import model_pb2, registry_pb2
from flywheel_protos.trainer.v1 import trainer_pb2

MODEL = "late-arrival"
SCOPES = {  # name → (one flight in, last day replayed)
    "sample": (10, datetime(2014, 1, 1, tzinfo=UTC)),
    "year": (1, datetime(2014, 1, 1, tzinfo=UTC)),
    "slice": (20, datetime(2013, 4, 22, tzinfo=UTC)),
}
START, SPLIT = datetime(2013, 1, 1, tzinfo=UTC), datetime(2013, 4, 1, tzinfo=UTC)
STREAMS = {
    "weather": features.weather,
    "departures": features.departures,
    "arrivals": features.arrivals,
}
S3 = {name: os.environ.get(f"FLYWHEEL_S3_{name.upper()}", default) for name, default in
      {"endpoint": "http://127.0.0.1:7303", "access_key": "flywheel", "secret_key": "flywheel-secret"}.items()}  # fmt: skip


def days(n: float) -> Duration:
    return Duration(seconds=int(n * 86_400))


def bucket() -> fs.S3FileSystem:
    return fs.S3FileSystem(
        access_key=S3["access_key"],
        secret_key=S3["secret_key"],
        endpoint_override=S3["endpoint"],
        region="us-east-1",
    )


def pipeline() -> trainer_pb2.PipelineSpec:
    """How a model is made, the first time by hand and later by the retraining policy."""
    source = ts.SourceSpine(
        source="projects/default/sources/arrivals",
        timestamp_field="prediction_time",
        label="arr_delay >= 15",
        start_time=fw.timestamp(START),
        end_time=fw.timestamp(SPLIT),
        known_before=fw.timestamp(SPLIT),
    )
    recipe = trainer_pb2.TabularRecipe(
        hidden_sizes=[64, 32],
        epochs=8,
        batch_size=256,
        learning_rate=2e-3,
        weight_decay=1e-4,
        dropout=0.1,
        seed=2013,
    )
    return trainer_pb2.PipelineSpec(
        model=f"projects/default/models/{MODEL}",
        feature_set="projects/default/featureSets/late_arrival",
        spine=ts.Spine(source=source),
        train=trainer_pb2.TrainSpec(
            experiment="projects/default/experiments/flights", tabular=recipe, workers=2
        ),
        fallback=model_pb2.Fallback(default_score=0.24),
        segment_keys=["origin"],
        start_rollout=True,
    )


async def set_up(client: fw.Client) -> None:
    """Model with its gates, monitoring and retraining policies: the rules that decide without us."""
    name = f"projects/default/models/{MODEL}"
    model = model_pb2.Model(
        description="Arrives at least 15 minutes late",
        gate_policy=model_pb2.GatePolicy(
            offline=[
                model_pb2.MetricThreshold(metric="auc", min=0.55, min_delta=-0.02),
                model_pb2.MetricThreshold(metric="log_loss", max=0.65),
            ],
            min_evaluation_rows=200,
        ),
        rollout_policy=model_pb2.RolloutPolicy(
            shadow_min_labelled=400, shadow_max_log_loss_delta=0.01, min_bake=days(3), canary_min_predictions=40,
            canary_max_log_loss_delta=0.05, max_error_rate=0.02, max_step=days(45),
        ),
    )  # fmt: skip
    await client.registry.CreateModel(
        registry_pb2.CreateModelRequest(
            parent=client.parent,
            model_id=MODEL,
            model=model,
            request_id="flights-model",
        )
    )
    await client.monitor.SetMonitorPolicy(
        monitor_pb2.SetMonitorPolicyRequest(
            policy=monitor_pb2.MonitorPolicy(
                model=name,
                window=days(7),
                min_predictions=300,
                min_labels=300,
                k_of=2,
                m_windows=3,
                lateness=days(1),
            )
        )
    )
    await client.trainer.CreateExperiment(
        trainer_pb2.CreateExperimentRequest(
            parent=client.parent,
            experiment_id="flights",
            request_id="flights-experiment",
        )
    )
    policy = trainer_pb2.RetrainingPolicy(
        name=f"projects/default/retrainingPolicies/{MODEL}",
        pipeline=pipeline(),
        cooldown=days(80),
        history=days(90),
    )
    await client.trainer.SetRetrainingPolicy(trainer_pb2.SetRetrainingPolicyRequest(policy=policy))


async def show_leak(client: fw.Client, story: Story) -> None:
    """The same model on a point-in-time training set and on a naive join that takes the latest value there is."""
    frames = {}
    for title, mode in (
        ("point in time", ts.JOIN_MODE_POINT_IN_TIME),
        ("naive join", ts.JOIN_MODE_NAIVE_LATEST),
    ):
        built = await client.build_training_set("late_arrival", pipeline().spine, mode=mode)
        story.line(
            f"training set ({title}): {built.row_count:,} rows in {built.build_duration.ToTimedelta().total_seconds():.1f} s"
        )
        table = pq.read_table(built.uri.removeprefix("s3://"), filesystem=bucket())
        frames[title] = pl.from_arrow(table).sort("event_timestamp")
    cut = int(frames["point in time"].height * 0.8)
    columns = [c for c in frames["naive join"].columns if "__" in c]
    values = {
        title: frame.select(pl.col(columns).cast(pl.Float64)).to_numpy() for title, frame in frames.items()
    }
    labels = {title: frame["label"].cast(pl.Float64).to_numpy() for title, frame in frames.items()}
    for title in frames:
        model = HistGradientBoostingClassifier(max_iter=80, random_state=0).fit(
            values[title][:cut], labels[title][:cut]
        )
        believed = roc_auc_score(labels[title][cut:], model.predict_proba(values[title][cut:])[:, 1])
        real = roc_auc_score(
            labels["point in time"][cut:],
            model.predict_proba(values["point in time"][cut:])[:, 1],
        )
        story.leak(title, float(believed), float(real))


class Feed:
    """The year's events and flights, handed out up to a moment."""

    def __init__(self, flights: pl.DataFrame) -> None:
        landed = flights.filter(pl.col("landed_at").is_not_null()).sort("landed_at", "flight_id")
        left = flights.filter(pl.col("departed_at").is_not_null()).sort("departed_at", "flight_id")
        self.frames = {
            "weather": data.weather().sort("known_at", "origin"),
            "departures": left,
            "arrivals": landed,
        }
        self.times = {name: self.frames[name][STREAMS[name].timestamp].to_numpy() for name in STREAMS}
        self.at = dict.fromkeys(STREAMS, 0)
        self.flights = flights
        self.predictions = flights["prediction_time"].to_numpy()

    def until(self, moment: datetime) -> dict[str, pl.DataFrame]:
        """Events that became known since the last call, at or before `moment`."""
        result = {}
        for name, times in self.times.items():
            end = int(
                np.searchsorted(
                    times,
                    np.datetime64(moment.replace(tzinfo=None), "us"),
                    side="right",
                )
            )
            result[name], self.at[name] = self.frames[name][self.at[name] : end], end
        return result

    def departing(self, moment: datetime) -> list[dict[str, object]]:
        """Flights scheduled for the hour that begins at `moment`."""
        key = np.datetime64(moment.replace(tzinfo=None), "us")
        first, end = (
            np.searchsorted(self.predictions, key, "left"),
            np.searchsorted(self.predictions, key, "right"),
        )
        return self.flights[int(first) : int(end)].to_dicts()


async def push(client: fw.Client, events: dict[str, pl.DataFrame], story: Story | None = None) -> None:
    """Sends events and waits until they show online."""

    async def send(name: str, part: pl.DataFrame) -> list[feature_pb2.AppliedOffset]:
        ids = part["flight_id"].to_list() if "flight_id" in part.columns else []
        answer = await client.push(name, part, STREAMS[name].schema, ids=ids)
        if story:
            story.advance(part.height)
        return list(answer.offsets)

    parts = [
        (name, part) for name, frame in events.items() if frame.height for part in frame.iter_slices(5_000)
    ]
    offsets = await asyncio.gather(*(send(name, part) for name, part in parts))
    await client.wait_applied([offset for found in offsets for offset in found], within=120)


async def replay(client: fw.Client, feed: Feed, until: datetime, story: Story) -> None:
    """Hour by hour from April on, holding the clock only while a pipeline trains."""
    gate, moment = asyncio.Semaphore(64), SPLIT

    async def predict(flight: dict[str, object], moment: datetime) -> None:
        async with gate:
            began = time.perf_counter()
            try:
                answer = await client.predict(
                    MODEL,
                    {name: flight[name] for name in features.KEYS},
                    {name: flight[name] for name in features.REQUEST},
                    as_of=moment,
                    prediction_id=str(flight["flight_id"]),
                )
                story.answered(answer, time.perf_counter() - began)
            except fw.FlywheelError as error:
                story.failed(error)

    async def label(arrivals: pl.DataFrame) -> None:
        landed = arrivals.filter(pl.col("prediction_time") >= SPLIT)
        if landed.height:
            outcomes = zip(landed["flight_id"], landed["late"], landed["landed_at"], strict=True)
            await client.record_outcomes(MODEL, list(outcomes))

    while moment < until:
        if departing := feed.departing(moment):
            known = feed.until(moment)
            await asyncio.gather(push(client, known), label(known["arrivals"]))
            await asyncio.gather(*(predict(flight, moment) for flight in departing))
        moment += timedelta(hours=1)
        if moment.hour == 8:  # night in New York: let the day's log be read before the next day begins
            await story.end_of_day(client, moment)


async def main() -> int:
    scope = os.environ.get("SCOPE") or "sample"
    one_in, until = SCOPES[scope]
    story = Story(scope, one_in, MODEL)
    async with fw.Client() as client:
        feed = Feed(data.flights(one_in))
        story.chapter("Data: January to March to S3 and the event topics")
        buffer = bucket().open_output_stream("flywheel/flights/planes/planes.parquet")
        pq.write_table(data.planes().to_arrow(), buffer)
        buffer.close()
        plan = await client.apply(fw.compile_definitions(vars(features).values(), client.project))
        story.line(
            f"applied {len(plan.changes)} definitions: "
            + ", ".join(c.name.split("/", 2)[2] for c in plan.changes[:4])
            + " …"
        )
        history = feed.until(SPLIT - timedelta(seconds=1))
        with story.progress("events pushed", sum(f.height for f in history.values())):
            await push(client, history, story)
        job = await client.materialize("plane_facts")
        story.line(f"materialized plane_facts: {job.progress.done:,} {job.progress.unit}")

        story.chapter("Training set: only what was known at the time")
        await set_up(client)
        await show_leak(client, story)

        story.chapter("First model: train → evaluate → register → gate → deploy")
        started = await client.start_pipeline(pipeline())
        await story.follow(client, started.name)
        status = await story.serving(client)
        story.line(f"serving {status.champion_release} at generation {status.generation}")

        story.chapter(f"Replay from April, one flight in {one_in}, hour by hour")
        await replay(client, feed, until, story)

        story.chapter("Rollback")
        await story.rollback(client)
        story.chapter("The year in one table")
        return await story.summary(client)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
