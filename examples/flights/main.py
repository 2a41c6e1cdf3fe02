"""Predict late arrivals of the flights that left New York in 2013, and keep the model good through the year.

    make run                                                         # platform, story, nothing left
    make up && eval "$(make env)" && python examples/flights/main.py # the story on a platform that stays
    SCOPE=year make run                                              # every flight instead of a fixed sample

January to March are history: features, a training set, a first model. Then the rest of the year is replayed hour by
hour: events arrive when they became known, predictions are asked for at the top of each flight's scheduled hour,
labels come when it lands. Everything else happens by itself.
"""

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
from model import NAME, SPLIT, declare, pipeline, spine
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score

import flywheel as fw

END = datetime(2014, 1, 1, tzinfo=UTC)
SCOPES = {"sample": (10, END), "year": (1, END), "slice": (20, datetime(2013, 4, 22, tzinfo=UTC))}
SOURCES = (features.weather, features.departures, features.arrivals)
HOUR, TICK = timedelta(hours=1), timedelta(microseconds=1)
console, began = Console(width=120, highlight=False), time.monotonic()


def tell(text: str, day: datetime | None = None) -> None:
    when = f"{day:%b %d}" if day else f"{time.monotonic() - began:.0f} s"
    console.print(f"[dim]{when:>7}[/dim]  {text}")


def between(frame: pl.DataFrame, column: str, start: datetime, end: datetime) -> pl.DataFrame:
    return frame[frame[column].search_sorted(start) : frame[column].search_sorted(end)]


async def compare_joins(client: fw.Client) -> list[tuple[str, str]]:
    """One classifier on features as they were known, and on features as of the landing, when the row was written."""
    rows, found = {}, []
    for title, moment in (("point in time", "prediction_time"), ("naive join", "landed_at")):
        built = await client.build_training_set("late_arrival", spine(moment))
        tell(
            f"{title}: {built.row_count:,} rows in {built.build_duration.ToTimedelta().total_seconds():.1f} s"
        )
        frame = pl.from_arrow(pq.read_table(built.uri.removeprefix("s3://"), filesystem=data.lake()))
        frame = frame.sort("event_timestamp").cast(
            {pl.selectors.numeric() | pl.selectors.boolean(): pl.Float64}
        )
        rows[title] = frame.select("^.*__.*$").to_numpy(), frame["label"].to_numpy()
    known, labels = rows["point in time"]
    cut = int(len(labels) * 0.8)
    for title, (x, y) in rows.items():
        classifier = HistGradientBoostingClassifier(max_iter=80, random_state=0).fit(x[:cut], y[:cut])
        believed = roc_auc_score(y[cut:], classifier.predict_proba(x[cut:])[:, 1])
        real = roc_auc_score(labels[cut:], classifier.predict_proba(known[cut:])[:, 1])
        found.append((f"AUC, {title}", f"{believed:.3f} believed, {real:.3f} when it must answer"))
        tell(": ".join(found[-1]))
    return found


class Replay:
    """Events, flights and labels, handed to the platform as time goes by; and what it answered."""

    def __init__(self, client: fw.Client, flights: pl.DataFrame) -> None:
        frames = zip(SOURCES, (data.weather(), flights, flights), strict=True)
        self.events = {s.name: f.drop_nulls(s.timestamp).sort(s.timestamp) for s, f in frames}
        self.client, self.flights, self.watch = client, flights, fw.ModelWatch(client, NAME)
        self.answers, self.milliseconds, self.failed = [], [], 0

    async def push(self, start: datetime, end: datetime) -> int:
        """Sends what became known in [start, end), labels too; returns once it shows online."""

        async def send(source: fw.StreamSource, part: pl.DataFrame) -> list[object]:
            ids = part["flight_id"].to_list() if "flight_id" in part.columns else ()
            return list((await self.client.push(source.name, part, source.schema, ids=ids)).offsets)

        news = [(s, between(self.events[s.name], s.timestamp, start, end)) for s in SOURCES]
        parts = [(s, p) for s, frame in news if frame.height for p in frame.iter_slices(5_000)]
        offsets = await asyncio.gather(*(send(s, p) for s, p in parts))
        landed = news[-1][1].filter(pl.col("prediction_time") >= SPLIT)
        labels = zip(landed["flight_id"], landed["late"], landed["landed_at"], strict=True)
        applied = self.client.wait_applied([o for found in offsets for o in found], within=120)
        await asyncio.gather(applied, self.client.record_outcomes(NAME, list(labels)))
        return sum(p.height for _, p in parts)

    async def predict(self, flight: dict[str, object], gate: asyncio.Semaphore) -> None:
        keys, fields = ({n: flight[n] for n in names} for names in (features.KEYS, features.REQUEST))
        moment, ident = flight["prediction_time"], str(flight["flight_id"])
        async with gate:
            sent = time.perf_counter()
            try:
                self.answers.append(
                    await self.client.predict(NAME, keys, fields, as_of=moment, prediction_id=ident)
                )
            except fw.FlywheelError as error:
                self.failed += 1
                tell(f"[red]{error.reason}[/red] {error.message}", moment)
            self.milliseconds.append((time.perf_counter() - sent) * 1000)

    async def run(self, until: datetime) -> None:
        gate, pushed, hour = asyncio.Semaphore(64), SPLIT, SPLIT
        with Progress(console=console) as bars:
            bar = bars.add_task(
                "flights", total=between(self.flights, "prediction_time", SPLIT, until).height
            )
            while hour < until:
                leaving = between(self.flights, "prediction_time", hour, hour + HOUR)
                if leaving.height:  # what became known at the full hour counts
                    pushed, start = hour + TICK, pushed
                    await self.push(start, pushed)
                    await asyncio.gather(*(self.predict(flight, gate) for flight in leaving.to_dicts()))
                hour += HOUR
                bars.update(bar, advance=leaving.height, description=f"flights {hour:%b %d}")
                if hour.hour == 8:  # night in New York
                    await self.end_day(hour)

    async def end_day(self, day: datetime) -> None:
        """Lets the monitor read the day's log, tells what is new, and holds the clock while a model trains."""
        await self.client.wait_monitored()
        await self.watch.until_idle(lambda news: tell(f"[bold]{news.kind}[/bold] {news.text}", day))

    def totals(self) -> list[tuple[str, str]]:
        waits, lookups = ([np.percentile(v, q) for q in (50, 99)] for v in
                          (self.milliseconds, [a.timing.features_ms for a in self.answers]))  # fmt: skip
        degraded = sum(a.degraded for a in self.answers)
        return [
            (
                "predictions",
                f"{len(self.answers):,} answered, {degraded:,} by a fallback, {self.failed} failed",
            ),
            ("Predict, p50 / p99", f"{waits[0]:.1f} / {waits[1]:.1f} ms"),
            ("feature lookup, p50 / p99", f"{lookups[0]:.1f} / {lookups[1]:.1f} ms"),
        ]


async def roll_back(client: fw.Client) -> str:
    try:
        answer = await client.rollback(NAME, "shown at the end of the story")
    except fw.FlywheelError as error:
        return f"nothing to roll back to: {error.message}"
    seconds = answer.elapsed.ToTimedelta().total_seconds()
    return f"{seconds:.3f} s to {answer.model.production_release} on {len(answer.gateways)} gateway(s)"


async def main() -> int:
    one_in, until = SCOPES[scope := os.environ.get("SCOPE") or "sample"]
    tell(f"flights of 2013, scope {scope}: " + (f"one in {one_in}, a fixed sample" if one_in > 1 else "all"))
    async with fw.Client() as client:
        replay, table = Replay(client, data.flights(one_in)), Table(show_header=False)
        console.rule("Data and features")
        with data.lake().open_output_stream("flywheel/flights/planes/planes.parquet") as file:
            pq.write_table(data.planes().to_arrow(), file)
        plan = await client.apply(fw.compile_definitions(vars(features).values(), client.project))
        tell(f"applied {len(plan.changes)} definitions")
        with Progress(console=console) as bars:
            for month in bars.track((1, 2, 3), description="January to March"):
                start, end = (datetime(2013, m, 1, tzinfo=UTC) for m in (month, month + 1))
                tell(f"month {month}: {await replay.push(start, end):,} events pushed and applied")
        job = await client.materialize("plane_facts")
        tell(f"materialized plane_facts: {job.progress.done:,} {job.progress.unit}")
        console.rule("Training sets: only what was known at the time, and what a naive join believes")
        leaks = await compare_joins(client)
        console.rule("First model: train → evaluate → register → gate → deploy")
        await declare(client)
        await client.start_pipeline(pipeline())
        await replay.end_day(SPLIT)
        tell(f"serving {(await client.wait_serving(NAME)).champion_release}")
        console.rule(f"Replay of April to {until - TICK:%B}, hour by hour")
        await replay.run(until)
        console.rule("Rollback, skew check, and the year in one table")
        totals = [*replay.totals(), *leaks, ("rollback", await roll_back(client))]
        skew = await client.check_skew(await client.prediction_archive(NAME, rows=len(replay.answers)))
        totals += [
            ("skew", f"{skew.values:,} online values recomputed offline, {skew.mismatches} mismatches")
        ]
        for row in [*totals, ("story", f"{time.monotonic() - began:.0f} s")]:
            table.add_row(*row)
        console.print(await fw.versions_table(client, NAME), await fw.alerts_table(client, NAME), table)
    return 1 if skew.mismatches or not skew.values or replay.failed or replay.watch.failed else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
