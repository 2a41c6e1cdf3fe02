"""Runs a join in partitions: the stages one after the other, the tasks of a stage on the given workers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from flywheel_common.errors import BY_CODE, FlywheelError, Unavailable
from flywheel_feature.offline.manifest import ROWS_PER_FILE, BuiltFiles, label_mean, profile_files
from flywheel_feature.offline.model import JoinMode
from flywheel_feature.offline.partitioned.spec import ERROR, PROGRESS, RESULT, Kind, Task
from flywheel_feature.offline.partitioned.steps import PartitionTasks, open_tasks
from flywheel_feature.offline.ports import Workspace
from flywheel_feature.tables.content_hash import combined_hash
from flywheel_feature.tables.ports import Tables


class Workers(Protocol):
    """Runs the tasks of one stage."""

    def run(self, tasks: Sequence[Task], done: Callable[[Task], None]) -> None:
        """Run all tasks and call `done` after each. Raises the error of a task; others may still run then."""
        ...


class SequentialWorkers:
    """Runs tasks in this process, one by one: at most the rows of one task are in memory."""

    def __init__(self, tasks: PartitionTasks) -> None:
        self._tasks = tasks

    def run(self, tasks: Sequence[Task], done: Callable[[Task], None]) -> None:
        for task in tasks:
            self._tasks.run(task)
            done(task)


def run_spec(workspace: Workspace, tables: Tables, workers: Callable[[PartitionTasks], Workers]) -> bool:
    """Run the join of the spec in a workspace and write its result or error there; False when it failed."""
    # Removes the error of an earlier attempt.
    workspace.write_bytes(ERROR, b"")
    try:
        tasks = open_tasks(workspace, tables)
        PartitionRun(tasks, workers(tasks)).run()
    except FlywheelError as error:
        workspace.write_json(ERROR, error_to_json(error))
        return False
    return True


class PartitionRun:
    """One run of a join, driven by one process. Tasks that an earlier run finished are not repeated."""

    def __init__(self, tasks: PartitionTasks, workers: Workers) -> None:
        self._tasks = tasks
        self._workers = workers
        self._workspace = tasks.workspace
        self._done: set[str] = set()
        self._count = 0
        self._total = 0
        self.repeated = 0
        """Tasks that an earlier run had finished."""

    def run(self) -> None:
        """Run all stages and write the result, unless it is there already."""
        if self._workspace.read_bytes(RESULT) is not None:
            return
        self._done = set(self._workspace.keys())
        spec, plan = self._tasks.spec, self._tasks.plan
        steps = sum(len(h.pieces) + h.buckets for h in spec.histories)
        self._total = len(spec.spine) + steps + 2
        self._stage("reading the spine", [Task(Kind.CHUNK, i) for i in range(len(spec.spine))])
        if spec.ordered == Kind.RANGE:
            ranges = self._ranges()
            self._total += len(ranges)
            self._stage("ordering the spine", ranges)
        spine = self._spread_spine()
        self._total += len(spine)
        spread = [*spine, *self._spread_histories()]
        self._stage("distributing rows over buckets", spread)
        joins = [
            Task(Kind.JOIN, bucket, view)
            for view in range(len(plan.stored))
            for bucket in range(spec.histories[view].buckets)
        ]
        self._stage("joining", joins)
        parts = self._parts()
        self._total += len(parts)
        self._stage("writing parts", parts)
        self._finish()

    def _stage(self, message: str, tasks: Iterable[Task]) -> None:
        tasks = list(tasks)
        open_tasks = [t for t in tasks if t.output not in self._done]
        self._count += len(tasks) - len(open_tasks)
        self.repeated += len(tasks) - len(open_tasks)
        self._report(message)

        def done(_: Task) -> None:
            self._count += 1
            self._report(message)

        self._workers.run(open_tasks, done)

    def _report(self, message: str) -> None:
        self._workspace.write_json(PROGRESS, {"done": self._count, "total": self._total, "message": message})

    def _ranges(self) -> list[Task]:
        """Ranges of times with about `rows_per_range` rows each; equal times are in one range."""
        notes = self._tasks.notes(Kind.CHUNK)
        rows = sum(n["rows"] for n in notes)
        count = -(-rows // self._tasks.spec.rows_per_range)
        if count <= 1:
            return [Task(Kind.RANGE, 0)]
        times = np.concatenate([np.array(n["times"], np.int64) for n in notes])
        weights = np.concatenate(
            [np.full(len(n["times"]), n["rows"] / max(len(n["times"]), 1)) for n in notes]
        )
        order = np.argsort(times, kind="stable")
        reached = np.cumsum(weights[order])
        wanted = reached[-1] * np.arange(1, count) / count
        edges = sorted({int(t) for t in times[order][np.searchsorted(reached, wanted)]})
        bounds = [None, *edges, None]
        return [Task(Kind.RANGE, i, low=low, high=high) for i, (low, high) in enumerate(pairwise(bounds))]

    def _spread_spine(self) -> list[Task]:
        tasks, offset = [], 0
        for note in self._tasks.notes(self._tasks.spec.ordered):
            tasks += [
                Task(Kind.KEYS, note["index"], view, offset=offset)
                for view in range(len(self._tasks.plan.stored))
            ]
            offset += note["rows"]
        return tasks

    def _spread_histories(self) -> list[Task]:
        mode: JoinMode = self._tasks.spec.request.mode
        earliest, latest = self._times()
        tasks = []
        for view, stored in enumerate(self._tasks.plan.stored):
            low, high = stored.between(earliest, latest, mode)
            tasks += [
                Task(Kind.ROWS, i, view, low, high)
                for i in range(len(self._tasks.spec.histories[view].pieces))
            ]
        return tasks

    def _times(self) -> tuple[int | None, int | None]:
        notes = [n for n in self._tasks.notes(self._tasks.spec.ordered) if n["rows"]]
        return min((n["low"] for n in notes), default=None), max((n["high"] for n in notes), default=None)

    def _parts(self) -> list[Task]:
        rows = sum(n["rows"] for n in self._tasks.notes(self._tasks.spec.ordered))
        return [
            Task(Kind.PART, part, low=start, high=min(start + ROWS_PER_FILE, rows))
            for part, start in enumerate(range(0, max(rows, 1), ROWS_PER_FILE))
        ]

    def _finish(self) -> None:
        spec, plan = self._tasks.spec, self._tasks.plan
        self._report("profiling columns")
        notes = self._tasks.notes(Kind.PART)
        rows = sum(n["rows"] for n in notes)
        columns = notes[0]["columns"]
        uris = [f"{spec.uri}part-{n['index']:05d}.parquet" for n in notes]
        fields, profile, labels = profile_files(
            plan, spec.request, self._tasks.tables, uris, [name for name, _ in columns]
        )
        earliest, latest = self._times()
        built = BuiltFiles(
            uri=spec.uri,
            content_hash=combined_hash(rows, columns, [b for n in notes for b in n["blocks"]]),
            row_count=rows,
            label_mean=label_mean(labels),
            min_time=earliest or 0,
            max_time=latest or 0,
            schema=tuple(fields),
            profile=tuple(profile),
            unlabelled_count=sum(n["unlabelled"] for n in self._tasks.notes(Kind.CHUNK)),
            late_events=self._tasks.late_events(),
        )
        self._workspace.write_bytes(RESULT, built.to_json())
        self._count = self._total
        self._report("done")


def error_to_json(error: FlywheelError) -> dict[str, Any]:
    """An error as JSON, for another process."""
    return {
        "code": error.code.name,
        "message": error.message,
        "reason": error.reason,
        "metadata": error.metadata,
    }


def error_from_json(content: dict[str, Any]) -> FlywheelError:
    """The error of `error_to_json`, as an instance of the base class of its status code."""
    classes = {code.name: cls for code, cls in BY_CODE.items()}
    cls = classes.get(content["code"], Unavailable)
    return cls.from_wire(content["message"], reason=content["reason"], metadata=content["metadata"])
