"""Imports runs of MLflow: a repeated import changes nothing, and one that was interrupted is completed."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from flywheel.errors import FlywheelError, NotFound
from flywheel.tracking.errors import TrackingError
from flywheel.tracking.mlflow_import.file_store import FileStore
from flywheel.tracking.mlflow_import.rest import MlflowServer
from flywheel.tracking.mlflow_import.server_store import ServerStore
from flywheel.tracking.mlflow_import.source import (
    ArtifactsElsewhere,
    DamagedRun,
    Source,
    SourcePoint,
    SourceRun,
)
from flywheel.tracking.mlflow_import.sqlite_store import SqliteStore
from flywheel.tracking.run_calls import RunCalls
from flywheel.tracking.values import check_artifact_name, check_metric_key, texts
from flywheel_common.errors import AlreadyExists
from flywheel_protos.trainer.v1 import trainer_pb2

NOTES_TAG, PARENT_TAG = "mlflow.note.content", "mlflow.parentRunId"
MAX_NOTES = 64 * 1024
POINTS_PER_CALL = 20_000
_ID = re.compile(r"[a-z][a-z0-9_-]{0,62}")
Item = TypeVar("Item")
_STATES = {
    "FINISHED": trainer_pb2.RUN_STATE_SUCCEEDED,
    "FAILED": trainer_pb2.RUN_STATE_FAILED,
    "KILLED": trainer_pb2.RUN_STATE_CANCELLED,
}


@dataclass
class Imported:
    """What became of one run."""

    uuid: str
    run: str
    """Its name here; empty: it was not imported."""
    new: bool
    """Whether this import completed it."""
    problems: list[str] = field(default_factory=list)
    """Sentences about what could not be imported."""


def open_source(place: str | Path) -> Source:
    """A tracking folder, the SQLite file of a server, or a server by its URL. Raises ValueError."""
    if is_url(place):
        return ServerStore(MlflowServer(str(place)))
    path = Path(place)
    if not path.exists():
        raise ValueError(f"{path} does not exist.")
    return FileStore(path) if path.is_dir() else SqliteStore(path)


def is_url(place: str | Path) -> bool:
    """Whether this is the URL of a server, not a path."""
    return str(place).startswith(("http://", "https://"))


def experiment_id(name: str) -> str:
    """The id of an experiment: its name where that is an id, else a similar id with a digest of the name."""
    if _ID.fullmatch(name):
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    words = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40]
    return f"mlflow-{words}-{digest}" if words else f"mlflow-{digest}"


def run_id(uuid: str) -> str:
    """The id of a run."""
    digits = uuid if re.fullmatch(r"[0-9a-f]{1,50}", uuid) else hashlib.sha256(uuid.encode()).hexdigest()[:32]
    return f"mlflow-{digits}"


async def import_runs(
    client: RunCalls, source: Source, *, include_running: bool = False
) -> AsyncIterator[Imported]:
    """Import all runs that are not deleted, parents first.

    A run with a file that cannot be read is left incomplete, and the others follow. One that MLflow has as
    RUNNING is left out, because MLflow does not notice the end of a process; with `include_running` it is
    imported as CANCELLED.
    """
    found = await asyncio.to_thread(lambda: list(source.runs()))
    runs = {run.uuid: run for run in found if not run.deleted}
    for run in _parents_first(runs):
        if run.status not in _STATES and not include_running:
            yield Imported(run.uuid, "", False, [f"It is {run.status}: import it again when it has ended."])
            continue
        try:
            yield await _Import(client, source, run, run.tags.get(PARENT_TAG) in runs).run()
        except DamagedRun as error:
            yield Imported(run.uuid, "", False, [f"{error} Import it again when the file is repaired."])


def _parents_first(runs: dict[str, SourceRun]) -> Iterator[SourceRun]:
    done: set[str] = set()
    for run in runs.values():
        path: list[SourceRun] = []
        current: SourceRun | None = run
        while current is not None and current.uuid not in done:
            done.add(current.uuid)
            path.append(current)
            current = runs.get(current.tags.get(PARENT_TAG, ""))
        yield from reversed(path)


class _Import:
    """The import of one run: its end comes last, so that a run which has ended is complete."""

    def __init__(self, client: RunCalls, source: Source, run: SourceRun, has_parent: bool) -> None:
        self._client, self._source, self._run, self._has_parent = client, source, run, has_parent
        self._name = client.path("runs", run_id(run.uuid))
        self._problems: list[str] = []

    async def run(self) -> Imported:
        try:
            existing = await self._client.get_run(self._name)
            if existing.state not in (trainer_pb2.RUN_STATE_RUNNING, trainer_pb2.RUN_STATE_LOST):
                return Imported(self._run.uuid, self._name, False)
        except NotFound:
            await self._create()
        async for key, points in _in_thread(self._source.metrics(self._run)):
            await self._log(key, points)
        await self._upload()
        await self._end()
        return Imported(self._run.uuid, self._name, True, self._problems)

    async def _create(self) -> None:
        source, experiment = self._run, experiment_id(self._run.experiment)
        try:
            description = f"MLflow experiment {source.experiment!r}"
            await self._client.trainer.CreateExperiment(
                trainer_pb2.CreateExperimentRequest(
                    parent=self._client.parent,
                    experiment_id=experiment,
                    experiment=trainer_pb2.Experiment(description=description),
                )
            )
        except AlreadyExists:
            # An experiment of the same name: its runs are comparable.
            pass
        tags = {key: value for key, value in source.tags.items() if key != NOTES_TAG}
        notes = source.tags.get(NOTES_TAG, "")
        if len(notes) > MAX_NOTES:
            self._problems.append(f"The notes have {len(notes)} characters: the first {MAX_NOTES} are kept.")
        run = trainer_pb2.Run(
            experiment=self._client.path("experiments", experiment),
            params=self._kept(source.params, "param"),
            tags=self._kept(tags, "tag"),
            display_name=source.name[:250],
            notes=notes[:MAX_NOTES],
            parent_run=self._client.path("runs", run_id(source.tags[PARENT_TAG])) if self._has_parent else "",
            code_version=source.tags.get("mlflow.source.git.commit", ""),
        )
        run.started_at.FromMilliseconds(source.start_ms)
        await self._client.trainer.CreateRun(
            trainer_pb2.CreateRunRequest(parent=self._client.parent, run=run, run_id=run_id(source.uuid))
        )

    def _kept(self, entries: object, kind: str) -> dict[str, str]:
        found: dict[str, str] = {}
        for key, value in dict(entries).items():  # type: ignore[call-overload]
            try:
                found |= texts({key: value}, kind)
            except TrackingError as error:
                self._problems.append(str(error))
        return found

    async def _log(self, key: str, points: Sequence[SourcePoint]) -> None:
        try:
            check_metric_key(key)
        except TrackingError as error:
            self._problems.append(str(error))
            return
        # MLflow keeps all values of a step, and shows the last one.
        last = {point.step: point for point in sorted(points, key=lambda p: p.time_ms)}
        if len(last) < len(points):
            self._problems.append(f"Of the {len(points)} values of {key!r}, the last of each step is kept.")
        kept = [last[step] for step in sorted(last)]
        for start in range(0, len(kept), POINTS_PER_CALL):
            part = kept[start : start + POINTS_PER_CALL]
            await self._client.trainer.LogMetrics(
                trainer_pb2.LogMetricsRequest(
                    run=self._name,
                    keys=[key] * len(part),
                    steps=[point.step for point in part],
                    values=[point.value for point in part],
                    times=[point.time_ms * 1000 for point in part],
                )
            )

    async def _upload(self) -> None:
        try:
            async for name, path in _in_thread(self._source.artifacts(self._run)):
                await self._upload_one(name, path)
        except ArtifactsElsewhere as error:
            self._problems.append(str(error))

    async def _upload_one(self, name: str, path: Path) -> None:
        try:
            await self._client.upload_run_artifact(self._name, check_artifact_name(name), path)
        except (TrackingError, FlywheelError) as error:
            if not isinstance(error, TrackingError) and error.retryable:
                raise
            self._problems.append(str(error))

    async def _end(self) -> None:
        state = _STATES.get(self._run.status)
        end = trainer_pb2.UpdateRunRequest(
            name=self._name,
            state=trainer_pb2.RUN_STATE_CANCELLED if state is None else state,
            error_message="" if state is not None else f"was {self._run.status} in MLflow",
        )
        if self._run.end_ms is not None:
            end.ended_at.FromMilliseconds(self._run.end_ms)
        await self._client.trainer.UpdateRun(end)


async def _in_thread(items: Iterator[Item]) -> AsyncIterator[Item]:
    """The items of an iterator that waits for a disk or a server."""
    end = object()
    while (item := await asyncio.to_thread(next, items, end)) is not end:
        yield item  # type: ignore[misc]
