"""Predict late arrivals of flights from New York in 2013, and keep the model accurate through the year.

    make run             # starts a platform, runs this script, stops the platform
    SCOPE=year make run  # the same with all flights instead of a fixed sample
    make up && eval "$(make env)" && python examples/flights/main.py  # on a platform that keeps running

January to March are history: features, a training set, a first model. The rest of the year is replayed hour
by hour: events arrive when they became known, each flight is predicted at the start of its scheduled hour,
and its label arrives when it lands. Drift detection, retraining and rollouts run without further calls.
"""

import asyncio
import os
import sys
import time
from datetime import UTC, datetime, timedelta

import data
import features
import polars as pl
from model import CACHED, NAME, SPLIT, declare, pipeline, spine
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score

import flywheel as fw
from flywheel_protos.registry.v1.registry_pb2 import GetModelRequest, GetModelVersionRequest

END = datetime(2014, 1, 1, tzinfo=UTC)
SCOPES = {"sample": (10, END), "year": (1, END), "slice": (20, datetime(2013, 4, 22, tzinfo=UTC))}
NUMBERS = pl.selectors.numeric() | pl.selectors.boolean()
console, began = Console(width=120, highlight=False), time.monotonic()


def show(text: str, day: datetime | None = None) -> None:
    """Prints a line with the simulated day, or with the seconds since the start."""
    when = f"{day:%b %d}" if day else f"{time.monotonic() - began:.0f} s"
    console.print(f"[dim]{when:>7}[/dim]  {text}")


async def compare_joins(client: fw.Client) -> list[tuple[str, str]]:
    """Trains one classifier on features as of the prediction, and one on features as of the landing."""
    rows, found = {}, []
    for title, moment in (("point in time", "prediction_time"), ("naive join", "landed_at")):
        built = await client.build_training_set("late_arrival", spine(moment))
        seconds = built.build_duration.ToTimedelta().total_seconds()
        show(f"{title}: {built.row_count:,} rows in {seconds:.1f} s")
        frame = pl.from_arrow(fw.read_table(built.uri)).sort("event_timestamp").cast({NUMBERS: pl.Float64})
        rows[title] = frame.select("^.*__.*$").to_numpy(), frame["label"].to_numpy()
    known, labels = rows["point in time"]
    cut = int(len(labels) * 0.8)
    for title, (x, y) in rows.items():
        classifier = HistGradientBoostingClassifier(max_iter=80, random_state=0).fit(x[:cut], y[:cut])
        apparent = roc_auc_score(y[cut:], classifier.predict_proba(x[cut:])[:, 1])
        real = roc_auc_score(labels[cut:], classifier.predict_proba(known[cut:])[:, 1])
        found.append((f"AUC, {title}", f"{apparent:.3f} apparent, {real:.3f} in production"))
        show(": ".join(found[-1]))
    return found


def replay_of(client: fw.Client, flights: pl.DataFrame) -> fw.Replay:
    """The events, predictions and labels of the flights, in the order in which they became known."""
    events = [fw.Events(features.weather, data.weather())]
    events += [fw.Events(s, flights, "flight_id") for s in (features.departures, features.arrivals)]
    requests = fw.Requests(
        flights,
        at="prediction_time",
        id="flight_id",
        entity_keys=features.KEYS,
        request_fields=features.REQUEST,
        label="late",
        labelled_at="landed_at",
    )
    return fw.Replay(client, NAME, events, requests, start=SPLIT)


async def end_day(client: fw.Client, watch: fw.ModelWatch, day: datetime) -> None:
    """Waits until the monitor has read the day's log and no model trains; shows the news of the day."""
    await client.wait_monitored()
    await watch.until_idle(lambda news: show(f"[bold]{news.kind}[/bold] {news.text}", day))


async def score_day(client: fw.Client, flights: pl.DataFrame, day: datetime) -> str:
    """Scores the flights of a day in one job; the gateway has the answers if the model cannot give them."""
    table = f"{features.SCORED_URI}{day:%Y-%m-%d}.parquet"
    chosen = flights.filter(pl.col("prediction_time").is_between(day, day + timedelta(days=1), closed="left"))
    wanted = chosen.select(*features.KEYS, *features.REQUEST, "flight_id", "prediction_time")
    fw.write_table(table, wanted.to_arrow())
    job = fw.ScoreJob(
        release=(await client.wait_serving(NAME)).champion_release,
        table=table,
        experiment="flights",
        timestamp_field="prediction_time",
        cache_for=CACHED,
    )
    run = await client.run_job(job)
    predictions = fw.read_table(run.params["predictions_uri"])
    return f"{predictions.num_rows:,} flights of {day:%b %d} with {job.release}"


async def compare_int8(client: fw.Client) -> str:
    """Exports the champion with 8-bit weights, and compares both on rows of its training set."""
    champion = (await client.registry.GetModel(GetModelRequest(name=client.path("models", NAME)))).model
    request = GetModelVersionRequest(name=champion.production_version)
    version = (await client.registry.GetModelVersion(request)).model_version
    job = fw.ExportJob(
        experiment="flights",
        model_version=version.name,
        training_set=version.training_dataset,
        format="INT8_STATIC",
        evaluation_rows=5000,
        max_flip_share=0.1,
        max_log_loss_increase=0.05,
        max_auc_loss=0.05,
    )
    try:
        found = (await client.run_job(job)).metrics
    except (fw.JobFailedError, fw.FlywheelError) as error:
        return f"not exported: {error}"
    ratios = f"1/{found['size_ratio']:.1f} of the size, {found['speed_ratio_1']:.1f} times the speed"
    quality = f"AUC {found['auc']:.4f} after {found['source_auc']:.4f}"
    return f"{ratios} ({found['speed_ratio_64']:.1f} at 64 rows), {quality}, {found['flip_share']:.2%} flips"


async def roll_back(client: fw.Client) -> str:
    """Rolls back to the previous release; returns how long that took."""
    try:
        answer = await client.rollback(NAME, "demonstration at the end of the example")
    except fw.FlywheelError as error:
        return f"nothing to roll back to: {error.message}"
    seconds = answer.elapsed.ToTimedelta().total_seconds()
    return f"{seconds:.3f} s to {answer.model.production_release} on {len(answer.gateways)} gateway(s)"


async def main() -> int:
    one_in, until = SCOPES[scope := os.environ.get("SCOPE") or "sample"]
    show(f"flights of 2013, scope {scope}: " + (f"one in {one_in}, a fixed sample" if one_in > 1 else "all"))
    async with fw.Client() as client:
        flights = data.flights(one_in)
        replay, watch = replay_of(client, flights), fw.ModelWatch(client, NAME)
        console.rule("Data and features")
        fw.write_table(f"{features.PLANES_URI}planes.parquet", data.planes().to_arrow())
        plan = await client.apply(fw.compile_definitions(vars(features).values(), client.project))
        show(f"applied {len(plan.changes)} definitions")
        with Progress(console=console) as bars:
            for month in bars.track((1, 2, 3), description="January to March"):
                start, end = (datetime(2013, m, 1, tzinfo=UTC) for m in (month, month + 1))
                show(f"month {month}: {await replay.push(start, end):,} events pushed and applied")
        job = await client.materialize("plane_facts")
        show(f"materialized plane_facts: {job.progress.done:,} {job.progress.unit}")
        console.rule("Training sets: point in time, and a naive join that leaks the future")
        leaks = await compare_joins(client)
        console.rule("First model: train → evaluate → register → gate → deploy")
        await declare(client)
        await client.start_pipeline(pipeline())
        await end_day(client, watch, SPLIT)
        show(f"serving {(await client.wait_serving(NAME)).champion_release}")
        console.rule(f"Replay of April to {until - timedelta(days=1):%B}, hour by hour")
        with Progress(console=console) as bars:
            bar = bars.add_task("flights", total=replay.total(until))
            async for hour, predicted in replay.steps(until):
                bars.update(bar, advance=predicted, description=f"flights {hour:%b %d}")
                if hour.hour == 8:  # night in New York
                    await end_day(client, watch, hour)
        console.rule("Rollback, skew check, and the year in one table")
        scored = await score_day(client, flights, until - timedelta(days=1))
        totals = [*replay.summary(), *leaks, ("batch", scored), ("INT8", await compare_int8(client))]
        totals.append(("rollback", await roll_back(client)))
        skew = await client.check_skew(await client.prediction_archive(NAME, rows=len(replay.answers)))
        checked = f"{skew.values:,} online values recomputed offline, {skew.mismatches} mismatches"
        table = Table(show_header=False)
        for row in [*totals, ("skew", checked), ("duration", f"{time.monotonic() - began:.0f} s")]:
            table.add_row(*row)
        console.print(await fw.versions_table(client, NAME), await fw.alerts_table(client, NAME), table)
    for error in replay.failures[:10]:
        show(f"[red]{error.reason}[/red] {error.message}")
    return 1 if skew.mismatches or not skew.values or replay.failures or watch.failed else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
