"""`ctx`, the argument of a job's function: everything that training code needs from the platform."""

from __future__ import annotations

import base64
import json
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from pyarrow import fs
from torch import nn

from flywheel_job import objects
from flywheel_job.agreed_stop import AgreedStop
from flywheel_job.artifacts import MODEL, REPORT
from flywheel_job.data.parquet import ParquetFiles
from flywheel_job.data.shard import WINDOW_ROWS, Shard
from flywheel_job.errors import InvalidExport, NonFiniteMetric, UnknownDataSet
from flywheel_job.launch import DataSet, LaunchSpec
from flywheel_job.outcome import Artifact
from flywheel_job.params import parse_params
from flywheel_job.reporting import MetricReporter
from flywheel_job.saved_checkpoint import Saved
from flywheel_job.signature import Signature

if TYPE_CHECKING:
    import polars as pl

    from flywheel_job.checkpoints import Checkpoints, Restored

P = TypeVar("P")
BATCH_TOLERANCE = 1e-4
"""Largest difference between a score of a row alone and in a batch."""


class SegmentEnded(BaseException):
    """Ends the call of the function at the end of a segment; no Exception, so that code does not catch it."""


class Context:
    """One rank's view of a job.

    `save`, `restore` and `should_stop` are collective: all ranks call them at the same point of the code.
    """

    def __init__(
        self,
        spec: LaunchSpec,
        store: fs.FileSystem,
        reporter: MetricReporter,
        *,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | None = None,
        stop: threading.Event | None = None,
        until_step: int = 0,
    ) -> None:
        self.until_step = until_step
        """Last step of the segment of the schedule that this call belongs to; 0: the job has no schedule."""
        self.spec, self.store = spec, store
        self.rank, self.world_size = rank, world_size
        self.device = device or torch.device("cpu")
        self.params: Mapping[str, Any] = MappingProxyType(dict(spec.params))
        self.seed = spec.seed
        self.artifacts: list[Artifact] = []
        """Files that this rank has stored."""
        self.notes: dict[str, str] = {}
        self._reporter, self._stop = reporter, stop or threading.Event()
        self._agreed = AgreedStop(self.device)
        self._shards: dict[str, Shard] = {}
        self._positions: dict[str, list[Any]] = {}
        self._last_step, self._last_metrics = -1, dict[str, float]()

    @cached_property
    def _checkpoints(self) -> Checkpoints:
        # Imported here: torch's distributed checkpoints take longer than the first step of a short job.
        from flywheel_job.checkpoints import Checkpoints

        spec = self.spec
        return Checkpoints(
            self.store,
            spec.checkpoint_uri,
            rank=self.rank,
            world=self.world_size,
            attempt=spec.attempt,
            initial_uri=spec.initial_checkpoint_uri,
            report=self._report_checkpoints if self.rank == 0 else None,
        )

    def parse_params(self, kind: type[P]) -> P:
        """The parameters as an instance of a dataclass. Raises InvalidParams naming each wrong one."""
        return parse_params(kind, self.params)

    def data_set(self, name: str = "train") -> DataSet:
        """Address and columns of a data set. Raises UnknownDataSet."""
        if name not in self.spec.data:
            raise UnknownDataSet(
                f"The job has no data set {name!r}; it has: {', '.join(self.spec.data) or 'none'}."
            )
        return self.spec.data[name]

    def data(
        self,
        name: str = "train",
        *,
        batch_size: int = 1024,
        columns: Sequence[str] | None = None,
        shuffle: bool = True,
        same_batches: bool = False,
        replica: tuple[int, int] | None = None,
        window_rows: int = WINDOW_ROWS,
        resume: bool = True,
    ) -> Shard:
        """This rank's share of a data set, streamed in batches of `batch_size` rows for each rank.

        An iteration is one epoch. Checkpoints contain the position, unless `resume` is False. `replica` is
        (number, count) for ranks that share one replica of a model, and therefore its rows; default: every
        rank is a replica. With `same_batches` the rows of a global batch do not depend on the number of
        ranks, but every rank reads all files.
        """
        number, count = replica or (self.rank, self.world_size)
        shard = Shard(
            ParquetFiles(self.store, self.data_set(name).uri, columns),
            rank=number,
            ranks=count,
            batch_size=batch_size,
            seed=self.seed,
            shuffle=shuffle,
            same_batches=same_batches,
            window_rows=window_rows,
            pin=self.device.type == "cuda",
        )
        if resume:
            self._shards[name] = shard
            if name in self._positions:
                shard.restore(self._positions[name])
        return shard

    def table(self, name: str = "train", columns: list[str] | None = None) -> pl.DataFrame:
        """A whole data set in the memory of this rank, for estimators that cannot train on batches."""
        return objects.read_table(self.store, self.data_set(name).uri, columns)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record metrics at a step; those of rank 0 are stored. Raises NonFiniteMetric on any rank."""
        values = {key: float(value) for key, value in metrics.items()}
        for key, value in values.items():
            if not math.isfinite(value):
                raise NonFiniteMetric(f"The metric {key!r} is {value} at step {step}.")
        if self.rank == 0:
            earlier = self._last_metrics if step == self._last_step else {}
            self._last_step, self._last_metrics = step, earlier | values
            self._reporter.log(step, values)

    def save(
        self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer | None = None, **state: Any
    ) -> None:
        """Save a checkpoint of the model, the optimizer, further state and the data positions.

        `state` has objects with `state_dict`, tensors, and JSON values that are equal on all ranks. A
        checkpoint is complete or absent; the newest two are kept. In a job with a schedule, the call of the
        function ends here at the end of a segment.
        """
        positions = {name: [shard.rank, shard.position()] for name, shard in self._shards.items()}
        metrics = self._last_metrics if step == self._last_step else {}
        self._checkpoints.save(step, model, optimizer, state, positions, metrics)
        if 0 < self.until_step <= step:
            raise SegmentEnded

    def restore(
        self, model: nn.Module, optimizer: torch.optim.Optimizer | None = None, **state: Any
    ) -> Restored | None:
        """Load the newest checkpoint of this job in place; None if there is none.

        `state` has the same names as for `save`. Data sets continue at their positions, also on another
        number of ranks. Raises WrongCheckpoint, CorruptCheckpoint.
        """
        found = self._checkpoints.restore(model, optimizer, state)
        if found is None:
            return None
        restored, saved = found
        for name, positions in saved.items():
            by_replica = dict(sorted((number, position) for number, position in positions))
            self._positions[name] = list(by_replica.values())
            if name in self._shards:
                self._shards[name].restore(self._positions[name])
        return restored

    def _report_checkpoints(self, saved: Sequence[Saved]) -> None:
        self._reporter.report_checkpoints(self.spec.job, self.spec.checkpoint_uri, saved)

    def note(self, name: str, value: str) -> None:
        """Record a parameter of the run that the code has chosen itself."""
        self.notes[name] = value

    def should_stop(self) -> bool:
        """Whether the job was asked to end; all ranks get the same answer. Save a checkpoint and return.

        With several ranks the answer is at most 0.25 s old, or 50 calls if their durations grow suddenly.
        """
        return self._agreed(self._stop.is_set() or self._reporter.run_ended.is_set())

    def artifact(self, name: str, content: bytes) -> None:
        """Store a file of the run under its digest, on rank 0; other ranks do nothing."""
        if self.rank == 0:
            uri, digest = objects.put_by_digest(self.store, self.spec.output_uri, content)
            self.artifacts = [one for one in self.artifacts if one.name != name]
            self.artifacts.append(Artifact(name, len(content), digest, uri))

    def export(
        self,
        onnx: bytes,
        signature: Signature,
        examples: npt.NDArray[np.float32],
        *,
        framework: str = "onnx",
        metrics: Mapping[str, float] | None = None,
        report: Mapping[str, Any] | None = None,
        batch_tolerance: float = BATCH_TOLERANCE,
    ) -> None:
        """Store the model and its report, on rank 0; other ranks do nothing.

        `examples` `[rows, inputs]` become the golden rows, which a server must reproduce before it answers.
        Raises InvalidExport if the model does not compute SCORE `[rows, outputs]` for them, all together and
        one alone; the two may differ by `batch_tolerance`.
        """
        if self.rank != 0:
            return
        rows = np.ascontiguousarray(examples, dtype=np.float32)
        scores = _check_model(onnx, signature, rows, batch_tolerance)
        content = {
            "framework": framework,
            "inputs": [asdict(one) for one in signature.inputs],
            "outputs": signature.outputs,
            "metrics": dict(metrics or {}),
            "training_set": next(iter(self.spec.data.values())).name if self.spec.data else "",
            "golden": {
                "row_count": len(rows),
                "inputs": base64.b64encode(rows.astype("<f4").tobytes()).decode(),
                "scores": base64.b64encode(scores.astype("<f4").tobytes()).decode(),
            },
        } | dict(report or {})
        self.artifact(MODEL, onnx)
        self.artifact(REPORT, json.dumps(content, sort_keys=True).encode())


def _check_model(
    onnx: bytes, signature: Signature, rows: npt.NDArray[np.float32], batch_tolerance: float
) -> npt.NDArray[np.float32]:
    """The scores of the rows."""
    from flywheel_job.scoring import INPUT, SCORE, open_session

    try:
        session = open_session(onnx)
        inputs = [(one.name, one.type) for one in session.get_inputs()]
        outputs = [one.name for one in session.get_outputs()]
    except Exception as error:
        raise InvalidExport(f"ONNX Runtime cannot load the model: {error}") from error
    if inputs != [(INPUT, "tensor(float)")] or outputs != [SCORE]:
        raise InvalidExport(
            f"The model has the inputs {inputs} and outputs {outputs}, not {INPUT} and {SCORE}."
        )
    if rows.ndim != 2 or rows.shape[1] != len(signature.inputs) or not len(rows):
        raise InvalidExport(
            f"The examples are {rows.shape}, but the signature has {len(signature.inputs)} inputs."
        )
    try:
        scores = session.run([SCORE], {INPUT: rows})[0]
        alone = session.run([SCORE], {INPUT: rows[:1]})[0]
    except Exception as error:
        raise InvalidExport(f"The model cannot score the example rows: {error}") from error
    if scores.shape != (len(rows), signature.outputs) or scores.dtype != np.float32:
        raise InvalidExport(
            f"{SCORE} is {scores.dtype} {scores.shape}, not float32 {(len(rows), signature.outputs)}."
        )
    if not np.isfinite(scores).all() or not np.allclose(alone, scores[:1], atol=batch_tolerance):
        raise InvalidExport("The scores are not finite, or depend on the other rows of a batch.")
    return scores
