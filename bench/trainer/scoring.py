"""Rows per second of a SCORE job against ONNX Runtime in a plain loop over the same Parquet, and its memory.

Both run in one process with one thread of ONNX Runtime, on local files: what remains is reading, conversion,
the model and, only for the job, calibration, decisions and the written predictions. The starts of processes
are not measured.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pyarrow as pa
import pyarrow.parquet as pq
from onnx import TensorProto, helper
from pyarrow import fs

from bench import measure
from flywheel_job import objects
from flywheel_job.launch import LaunchSpec
from flywheel_job.worker import call
from flywheel_protos.registry.v1 import model_pb2
from flywheel_protos.types.v1 import value_pb2
from tests.support.scoring_job import PREDICTIONS, TABLE, scoring_job

FEATURES = 20
NETWORKS: dict[str, tuple[tuple[int, ...], int]] = {
    "20-64-32-1": ((64, 32), 4_000_000),
    "20-512-512-1": ((512, 512), 500_000),
}
"""Hidden layers and rows: the default network of the tabular recipe, and a larger one."""
ROUNDS = 5
LOOP = "ONNX Runtime in a loop"
LARGE_ROWS, FILE_ROWS = 10_000_000, 1_000_000
BATCH_ROWS = 16_384
GIBIBYTE = 1 << 30
NAMES = [f"v__x{i}" for i in range(FEATURES)]


def network(hidden: tuple[int, ...]) -> bytes:
    """A feed-forward network INPUT [rows, FEATURES] → SCORE [rows, 1] with random weights; nulls are 0."""
    rng = np.random.default_rng(1)
    sizes, last = (FEATURES, *hidden, 1), "filled"
    nodes = [
        helper.make_node("IsNaN", ["INPUT"], ["missing"]),
        helper.make_node("Where", ["missing", "zero", "INPUT"], ["filled"]),
    ]
    constants = [helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0])]
    for layer, (wide, high) in enumerate(pairwise(sizes)):
        weights = rng.normal(0, wide**-0.5, (wide, high)).astype(np.float32)
        constants += [
            helper.make_tensor(f"W{layer}", TensorProto.FLOAT, weights.shape, weights.reshape(-1)),
            helper.make_tensor(f"b{layer}", TensorProto.FLOAT, [high], np.zeros(high, np.float32)),
        ]
        nodes.append(helper.make_node("Gemm", [last, f"W{layer}", f"b{layer}"], [f"h{layer}"]))
        name, last = ("Sigmoid", "SCORE") if layer == len(hidden) else ("Relu", f"r{layer}")
        nodes.append(helper.make_node(name, [f"h{layer}"], [last]))
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("INPUT", TensorProto.FLOAT, ["rows", FEATURES])],
        [helper.make_tensor_value_info("SCORE", TensorProto.FLOAT, ["rows", 1])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 9
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def table(rows: int, first: int, rng: np.random.Generator) -> pa.Table:
    """A joined table: a key, the time, and FEATURES numbers of which 1 % are null."""
    columns: dict[str, Any] = {
        "carrier": np.arange(first, first + rows),
        "event_timestamp": pa.array([datetime(2026, 1, 1, tzinfo=UTC)], pa.timestamp("us", "UTC")).take(
            pa.array(np.zeros(rows, np.int64))
        ),
    }
    for name in NAMES:
        columns[name] = pa.array(rng.normal(size=rows), mask=rng.random(rows) < 0.01)
    return pa.table(columns)


def prepare(folder: Path, hidden: tuple[int, ...], rows: int) -> tuple[fs.FileSystem, LaunchSpec, bytes]:
    """The files of a job below `folder`, its launch specification, and the model."""
    store = fs.SubTreeFileSystem(str(folder), fs.LocalFileSystem())
    rng = np.random.default_rng(2)
    objects.create_folder(store, TABLE)
    for number, first in enumerate(range(0, rows, FILE_ROWS)):
        part = table(min(FILE_ROWS, rows - first), first, rng)
        with store.open_output_stream(objects.path_of(f"{TABLE}{number:04}.parquet")) as stream:
            pq.write_table(part, stream, row_group_size=131_072)
    inputs = [model_pb2.SignatureInput(name=n, data_type=value_pb2.DATA_TYPE_FLOAT64) for n in NAMES]
    platt = model_pb2.Calibration.Platt(slope=1.1, intercept=0.1)
    release = model_pb2.ServingRelease(
        release=model_pb2.Release(
            name="projects/p/models/m/releases/1",
            threshold=0.5,
            calibration=model_pb2.Calibration(platt=platt),
        ),
        model_version=model_pb2.ModelVersion(signature=model_pb2.Signature(inputs=inputs)),
    )
    model = network(hidden)
    spec = scoring_job(store, release, {"model.onnx": model})
    objects.write(store, "s3://b/spec.json", spec.to_json())
    return store, spec, model


def score(store: fs.FileSystem, spec: LaunchSpec) -> float:
    """Seconds of a whole job, from the files to the committed predictions."""
    objects.delete(store, PREDICTIONS)
    started = time.perf_counter()
    call(spec.function, spec, store)
    call(spec.export, spec, store)
    return time.perf_counter() - started


def plain(store: fs.FileSystem, model: bytes) -> float:
    """Seconds of the loop that one would write by hand; it keeps the scores and writes nothing."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    started = time.perf_counter()
    scores = []
    for path in objects.files_under(store, TABLE, ".parquet"):
        with store.open_input_file(path) as stream:
            for batch in pq.ParquetFile(stream).iter_batches(BATCH_ROWS, columns=NAMES):
                rows = np.empty((batch.num_rows, FEATURES), np.float32)
                for place in range(FEATURES):
                    rows[:, place] = batch.column(place).to_numpy(zero_copy_only=False)
                scores.append(session.run(["SCORE"], {"INPUT": rows})[0])
    np.concatenate(scores)
    return time.perf_counter() - started


class Rate:
    """Rows per second of a way to score; `cpu` has rows per second of processor time, by call."""

    def __init__(self, rows: int, measured: Callable[[], float]) -> None:
        self._rows, self._measured = rows, measured
        self.cpu: list[float] = []

    def __call__(self) -> float:
        started = time.process_time()
        seconds = self._measured()
        self.cpu.append(self._rows / (time.process_time() - started))
        return self._rows / seconds


def run(only: str) -> Iterable[measure.Row]:
    for name, (hidden, rows) in NETWORKS.items():
        if only not in f"rows/s of a SCORE job {name}":
            continue
        with tempfile.TemporaryDirectory(prefix="flywheel-bench-") as folder:
            store, spec, model = prepare(Path(folder), hidden, rows)
            ours, loop = Rate(rows, partial(score, store, spec)), Rate(rows, partial(plain, store, model))
            ours(), loop()
            ours.cpu.clear(), loop.cpu.clear()
            pairs = measure.alternating(ROUNDS, ours, loop)
        yield measure.compared(
            f"rows/s of a SCORE job, network {name}",
            "rows/s",
            LOOP,
            pairs,
            measure.at_least(0.8),
        )
        # Other load on the machine changes this ratio less.
        cpu = list(zip(ours.cpu, loop.cpu, strict=True))
        yield measure.compared(
            f"rows per CPU second of a SCORE job, network {name}", "rows/s", LOOP, cpu, None
        )
    if only in "memory of a SCORE job":
        with tempfile.TemporaryDirectory(prefix="flywheel-bench-") as folder:
            prepare(Path(folder), (64, 32), LARGE_ROWS)
            peak = measured_peak(folder)
        what = f"peak memory of a SCORE job of {LARGE_ROWS // 1_000_000} M rows"
        yield measure.row(what, peak / GIBIBYTE, "GiB", measure.at_most(2.0, of_value=True))


def measured_peak(folder: str) -> int:
    """Peak bytes of a process that scores the table below `folder`."""
    command = [sys.executable, "-m", "bench.trainer.scoring", folder]
    found = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return int(found.stdout.split()[-1])


def main(folder: str) -> None:
    """Score the table below `folder`, and print the peak memory of this process in bytes."""
    store = fs.SubTreeFileSystem(folder, fs.LocalFileSystem())
    spec = LaunchSpec.from_json(objects.read(store, "s3://b/spec.json"))
    score(store, spec)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


if __name__ == "__main__":
    main(sys.argv[1])
