"""Comparison of runs: what differs, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flywheel_protos.trainer.v1 import trainer_pb2


@dataclass(frozen=True)
class Row:
    """One field of all runs; `differs` if two runs have different values, or one has none."""

    field: str
    values: tuple[str, ...]

    @property
    def differs(self) -> bool:
        return len(set(self.values)) > 1


def compare(runs: Sequence[trainer_pb2.Run]) -> list[Row]:
    """Params, metrics (`last [min, max]`), tags and provenance of the runs; an absent value is empty."""
    rows = [
        Row("name", tuple(run.display_name or run.name.rpartition("/")[2] for run in runs)),
        Row("experiment", tuple(run.experiment.rpartition("/")[2] for run in runs)),
        Row("state", tuple(trainer_pb2.RunState.Name(r.state).removeprefix("RUN_STATE_") for r in runs)),
        Row("seconds", tuple(_seconds(run) for run in runs)),
        Row("code_version", tuple(run.code_version for run in runs)),
        Row("training_set", tuple(run.training_set for run in runs)),
    ]
    for field in ("params", "tags"):
        maps = [getattr(run, field) for run in runs]
        rows += [Row(f"{field}.{key}", tuple(one.get(key, "") for one in maps)) for key in _keys(maps)]
    metrics = _keys([run.metrics for run in runs])
    return rows + [Row(f"metrics.{key}", tuple(_metric(run, key) for run in runs)) for key in metrics]


def _keys(maps: Sequence[Mapping[str, object]]) -> list[str]:
    return sorted({key for one in maps for key in one})


def _metric(run: trainer_pb2.Run, key: str) -> str:
    if key not in run.metrics:
        return ""
    last = f"{run.metrics[key]:.6g}"
    if key not in run.metric_summaries:
        return last
    summary = run.metric_summaries[key]
    return f"{last} [{summary.min:.6g}, {summary.max:.6g}]"


def _seconds(run: trainer_pb2.Run) -> str:
    if not run.HasField("ended_at"):
        return ""
    return f"{(run.ended_at.ToMicroseconds() - run.started_at.ToMicroseconds()) / 1e6:.1f}"
