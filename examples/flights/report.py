"""How the story is told: chapters, progress, one line per event that matters, and the table at the end."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

import flywheel as fw
from flywheel_protos.events.v1 import prediction_pb2
from flywheel_protos.inference.v1 import inference_pb2
from flywheel_protos.monitor.v1 import monitor_pb2
from flywheel_protos.registry.v1 import model_pb2, registry_pb2
from flywheel_protos.trainer.v1 import trainer_pb2
from flywheel_protos.types.v1 import job_pb2

RUNNING = {job_pb2.JOB_STATE_QUEUED, job_pb2.JOB_STATE_RUNNING}


class Story:
    """Collects what happened and prints it; promised steps that did not happen make the exit code 1."""

    def __init__(self, scope: str, one_in: int, model: str) -> None:
        self.console, self.model, self.name = (
            Console(width=120),
            model,
            f"projects/default/models/{model}",
        )
        self.began, self.bar, self.task = time.monotonic(), None, None
        self.latencies: list[float] = []
        self.sources: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.lookups: list[float] = []
        self.known_alerts: dict[str, monitor_pb2.Alert] = {}
        self.rollouts: dict[str, tuple[int, float]] = {}
        self.followed: set[str] = set()
        self.leaks: list[tuple[str, float, float]] = []
        self.broken: list[str] = []
        self.rollback_seconds: float | None = None
        self.line(
            f"flights of 2013, scope {scope}: one flight in {one_in}"
            + ("" if one_in == 1 else ", a fixed sample")
        )

    def line(self, text: str, day: datetime | None = None) -> None:
        when = f"{day:%b %d}" if day else f"{time.monotonic() - self.began:5.0f}s"
        self.console.print(f"[dim]{when:>7}[/dim]  {text}", highlight=False)

    def chapter(self, title: str) -> None:
        self.console.print(f"\n[bold]{title}[/bold]")

    @contextmanager
    def progress(self, what: str, total: int) -> Iterator[None]:
        with Progress(
            TextColumn("         {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self.console,
        ) as self.bar:
            self.task = self.bar.add_task(what, total=total)
            yield
        self.bar = None

    def advance(self, n: int) -> None:
        if self.bar is not None:
            self.bar.advance(self.task, n)

    def leak(self, title: str, believed: float, real: float) -> None:
        self.leaks.append((title, believed, real))
        self.line(
            f"{title}: AUC {believed:.3f} on its own holdout, {real:.3f} on what is really known when it must answer"
        )

    def answered(self, answer: inference_pb2.PredictResponse, seconds: float) -> None:
        self.latencies.append(seconds * 1000)
        self.sources[
            prediction_pb2.PredictionSource.Name(answer.source).removeprefix("PREDICTION_SOURCE_")
        ] += 1
        self.lookups.append(answer.timing.features_ms)

    def failed(self, error: fw.FlywheelError) -> None:
        self.errors[error.reason] += 1

    async def follow(
        self, client: fw.Client, name: str, day: datetime | None = None
    ) -> trainer_pb2.PipelineRun | None:
        """Prints a pipeline run's steps and epochs until it ends."""
        self.followed.add(name)
        told: set[str] = set()
        epochs = 0

        def step(run: trainer_pb2.PipelineRun) -> None:
            for item in run.steps:
                if item.state == job_pb2.JOB_STATE_SUCCEEDED and item.step not in told:
                    told.add(item.step)
                    seconds = item.ended_at.ToNanoseconds() / 1e9 - item.started_at.ToNanoseconds() / 1e9
                    self.line(
                        f"{item.step}: {item.output or 'done'} {item.message} ({seconds:.1f} s)",
                        day,
                    )

        async def losses() -> None:
            nonlocal epochs
            while True:
                await asyncio.sleep(0.5)
                pipeline = (
                    await client.trainer.GetPipelineRun(trainer_pb2.GetPipelineRunRequest(name=name))
                ).pipeline_run
                newest = (
                    await client.trainer.ListRuns(
                        trainer_pb2.ListRunsRequest(parent="projects/default", page_size=1)
                    )
                ).runs
                if not newest or newest[0].training_set != pipeline.training_set:
                    continue
                run = newest[0].name
                points = await client.trainer.ListMetricPoints(
                    trainer_pb2.ListMetricPointsRequest(run=run, page_size=1000)
                )
                rows: dict[int, dict[str, float]] = {}
                for key, at, value in zip(points.keys, points.steps, points.values, strict=True):
                    if key in ("train_loss", "val_loss", "val_auc"):
                        rows.setdefault(at, {})[key] = value
                for at in sorted(rows)[epochs:]:
                    epochs += 1
                    self.line(
                        f"epoch {at}: " + "  ".join(f"{k} {v:.4f}" for k, v in sorted(rows[at].items())),
                        day,
                    )

        watching = asyncio.create_task(losses())
        try:
            return await client.wait_pipeline(name, step)
        except fw.JobFailedError as error:
            self.broken.append(str(error))
            self.line(f"[red]{error}[/red]", day)
            return None
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def serving(self, client: fw.Client, within: float = 60.0) -> inference_pb2.ServingStatus:
        """Waits until the gateway serves a champion that passed its golden rows."""
        async with asyncio.timeout(within):
            while True:
                answer = await client.inference.GetServingStatus(inference_pb2.GetServingStatusRequest())
                for status in answer.models:
                    if status.model == self.name and status.champion_release in status.ready_releases:
                        return status
                await asyncio.sleep(0.2)

    async def end_of_day(self, client: fw.Client, moment: datetime) -> None:
        """Lets the monitor read the day's log, prints what is new, and holds the clock while a pipeline trains."""
        for _ in range(100):
            status = await client.monitor.GetIngestStatus(
                monitor_pb2.GetIngestStatusRequest(parent="projects/default")
            )
            if status.lag_records == 0:
                break
            await asyncio.sleep(0.05)
        if moment.day == 1:
            self.line(
                f"{len(self.latencies):,} predictions so far, p99 {np.percentile(self.latencies or [0], 99):.1f} ms",
                moment,
            )
        alerts = await client.monitor.ListAlerts(monitor_pb2.ListAlertsRequest(parent="projects/default"))
        for alert in alerts.alerts:
            if alert.name not in self.known_alerts:
                drifted = ", ".join(f"{f.feature} (PSI {f.psi:.2f})" for f in alert.features[:3])
                self.line(
                    f"[yellow]alert {alert.kind}[/yellow] {alert.reason} {drifted}",
                    moment,
                )
            self.known_alerts[alert.name] = alert
        await self._rollouts(client, moment)
        runs = await client.trainer.ListPipelineRuns(
            trainer_pb2.ListPipelineRunsRequest(parent="projects/default")
        )
        for run in runs.pipeline_runs:
            if run.state in RUNNING and run.name not in self.followed:
                self.line(
                    f"retraining started by itself because of {run.cause_alert}; the clock is held while it trains",
                    moment,
                )
                await self.follow(client, run.name, moment)

    async def _rollouts(self, client: fw.Client, moment: datetime) -> None:
        answer = await client.registry.ListRollouts(registry_pb2.ListRolloutsRequest(parent=self.name))
        for rollout in answer.rollouts:
            if self.rollouts.get(rollout.name) != (
                rollout.state,
                rollout.challenger_percent,
            ):
                self.rollouts[rollout.name] = (
                    rollout.state,
                    rollout.challenger_percent,
                )
                state = model_pb2.RolloutState.Name(rollout.state).removeprefix("ROLLOUT_STATE_")
                challenger = rollout.challenger_release.rsplit("/", 1)[1]
                self.line(
                    f"[cyan]release {challenger}: {state} {rollout.challenger_percent:g} %[/cyan] {rollout.reason}",
                    moment,
                )

    async def rollback(self, client: fw.Client) -> None:
        try:
            answer = await client.rollback(self.model, "shown at the end of the story")
        except fw.FlywheelError as error:
            self.line(f"nothing to roll back to: {error.reason} (no challenger was promoted)")
            return
        self.rollback_seconds = answer.elapsed.ToTimedelta().total_seconds()
        self.line(
            f"{answer.model.production_release} serves again after {self.rollback_seconds:.3f} s on {len(answer.gateways)} gateway(s)"
        )
        if not answer.complete:
            self.broken.append("the rollback was not acknowledged by every live gateway")

    async def summary(self, client: fw.Client) -> int:
        table = Table(
            "version",
            "stage",
            "served",
            "labelled",
            "AUC",
            "log-loss",
            "calibration error",
            title="Model versions",
        )
        versions = await client.registry.ListModelVersions(
            registry_pb2.ListModelVersionsRequest(parent=self.name)
        )
        for version in reversed(versions.model_versions):
            stage = model_pb2.Stage.Name(version.stage).removeprefix("STAGE_")
            try:
                found = await client.monitor.GetPerformance(
                    monitor_pb2.GetPerformanceRequest(model_version=version.name)
                )
            except fw.NotFound:
                table.add_row(version.name.rsplit("/", 1)[1], stage, "never", "", "", "", "")
                continue
            p = found.performance
            span = f"{p.first_event.ToDatetime():%b %d} – {p.last_event.ToDatetime():%b %d}"
            cells = [f"{p.auc:.3f}", f"{p.log_loss:.3f}", f"{p.calibration_error:.3f}"]
            table.add_row(
                version.name.rsplit("/", 1)[1],
                stage,
                span,
                f"{p.labelled:,} of {p.predictions:,}",
                *cells,
            )
        self.console.print(table)
        alerts = Table("opened by the window until", "kind", "features", title="Drift alerts")
        for alert in sorted(self.known_alerts.values(), key=lambda a: a.window_end.ToNanoseconds()):
            names = ", ".join(f.feature for f in alert.features[:4])
            alerts.add_row(
                f"{alert.window_end.ToDatetime():%b %d}",
                alert.kind,
                names or alert.reason,
            )
        self.console.print(alerts)
        totals = Table(show_header=False, title="Service")
        for title, believed, real in self.leaks:
            totals.add_row(f"AUC believed / real, {title}", f"{believed:.3f} / {real:.3f}")
        totals.add_row(
            "predictions",
            f"{len(self.latencies):,}" + (f", failed: {dict(self.errors)}" if self.errors else ", 0 failed"),
        )
        for what, values in (
            ("predict, p50 / p99", self.latencies),
            ("feature lookup, p50 / p99", self.lookups),
        ):
            totals.add_row(
                what,
                f"{np.percentile(values or [0], 50):.1f} / {np.percentile(values or [0], 99):.1f} ms",
            )
        totals.add_row(
            "answered by",
            ", ".join(f"{name} {count:,}" for name, count in self.sources.items()),
        )
        await self._skew(client, totals)
        totals.add_row(
            "rollback",
            "none" if self.rollback_seconds is None else f"{self.rollback_seconds:.3f} s",
        )
        totals.add_row("story", f"{time.monotonic() - self.began:.0f} s")
        self.console.print(totals)
        for problem in self.broken:
            self.console.print(f"[red]broken promise: {problem}[/red]")
        return 1 if self.broken or not self.latencies or self.errors else 0

    async def _skew(self, client: fw.Client, totals: Table) -> None:
        archive = await client.monitor.GetPredictionArchive(
            monitor_pb2.GetPredictionArchiveRequest(model=self.name)
        )
        skew = await client.check_skew(archive.uri)
        totals.add_row(
            "skew check",
            f"{skew.values:,} online values recomputed offline, {skew.mismatches:,} mismatches",
        )
        if skew.mismatches or not skew.values:
            self.broken.append(f"online and offline features differ: {skew.mismatches} of {skew.values}")
            for feature in skew.features:
                if feature.mismatch_count:
                    self.line(
                        f"{feature.feature}: {feature.mismatch_count} of {feature.compared_count}, e.g. {feature.examples[:1]}"
                    )
