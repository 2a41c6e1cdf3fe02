"""One rank of a job: loads the function, calls it with `ctx`, and returns what the run stores.

Ray Train starts ranks in its workers. Without Ray, `torchrun -m flywheel_job.worker SPEC_URI` does, or any
launcher that sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from pyarrow import fs

from flywheel_common.errors import FlywheelError
from flywheel_job import objects
from flywheel_job.context import Context, SegmentEnded
from flywheel_job.early_stopping import GatedReporter
from flywheel_job.errors import SegmentNotReached
from flywheel_job.launch import LaunchSpec, Segment
from flywheel_job.outcome import Artifact, Outcome
from flywheel_job.provenance import code_version, environment, files
from flywheel_job.reporting import MetricReporter
from flywheel_job.source.archive import unpack
from flywheel_job.source.function import failure, load_function


@contextlib.contextmanager
def source_folder(spec: LaunchSpec, store: fs.FileSystem) -> Iterator[Path | None]:
    """A folder with the unpacked source archive, deleted afterwards; None if the job has no archive."""
    if spec.source is None:
        yield None
        return
    archive = objects.read(store, spec.source.uri)
    with tempfile.TemporaryDirectory(prefix="flywheel-source-") as name:
        unpack(archive, spec.source.sha256, Path(name))
        yield Path(name)


def call(
    name: str,
    spec: LaunchSpec,
    store: fs.FileSystem,
    *,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | None = None,
    stop: threading.Event | None = None,
) -> Outcome:
    """Call one function of the job, and return what this rank has stored and logged.

    Torch gets as many threads as the rank has CPUs, because another number can change the last bits of a sum.

    Raises a FlywheelError with a reason; exceptions of the user's code become TrainingFailed.
    """
    torch.set_num_threads(max(1, int(spec.resources.cpus)))
    used = device or torch.device("cpu")
    artifacts: dict[str, Artifact] = {}
    notes: dict[str, str] = {}
    with source_folder(spec, store) as root, _reporter(spec, rank) as reporter:
        function = load_function(name, root)
        for segment in _segments(name, spec, store):
            seed_generators(spec.seed)
            part = replace(spec, params={**spec.params, **segment.params})
            ctx = Context(
                part,
                store,
                reporter,
                rank=rank,
                world_size=world_size,
                device=used,
                stop=stop,
                until_step=segment.until_step,
            )
            call_segment(function, ctx, segment)
            artifacts |= {one.name: one for one in ctx.artifacts}
            notes |= ctx.notes
        points = tuple(reporter.points)
    if rank == 0 and name == spec.function:
        artifacts |= {one.name: one for one in _provenance_files(spec, store)}
    return Outcome(
        succeeded=True,
        artifacts=tuple(artifacts.values()),
        points=points,
        params={key: str(value) for key, value in spec.params.items() if value not in ("", None)}
        | {"workers": str(world_size)}
        | notes,
        code_version=code_version(spec),
        environment=environment(used, spec),
    )


def _provenance_files(spec: LaunchSpec, store: fs.FileSystem) -> Iterator[Artifact]:
    for name, content in files(spec).items():
        uri, digest = objects.put_by_digest(store, spec.output_uri, content)
        yield Artifact(name, len(content), digest, uri)


def _reporter(spec: LaunchSpec, rank: int) -> MetricReporter:
    if rank != 0:
        return MetricReporter("", spec.run)
    if spec.gate is not None:
        return GatedReporter(spec.trainer_address, spec.run, spec.gate)
    return MetricReporter(spec.trainer_address, spec.run)


def _segments(name: str, spec: LaunchSpec, store: fs.FileSystem) -> list[Segment]:
    """The calls of a function: one for each segment of the schedule that no checkpoint has passed."""
    if not spec.schedule:
        return [Segment(0)]
    if name != spec.function:  # check and export
        return [Segment(0, spec.schedule[-1].params)]
    from flywheel_job.checkpoints import Checkpoints

    done = Checkpoints(store, spec.checkpoint_uri, rank=0, world=1, attempt=spec.attempt).newest_step()
    return [one for one in spec.schedule if one.until_step > done]


def call_segment(function: Callable[[Any], Any], ctx: Context, segment: Segment) -> None:
    """Call the function until the end of the segment. Raises SegmentNotReached if it returns before."""
    try:
        call_user_code(function, ctx)
    except SegmentEnded:
        return
    if segment.until_step:
        raise SegmentNotReached(
            f"The function returned before it saved a checkpoint at step {segment.until_step} or later."
        )


def call_user_code(function: Callable[[Any], Any], ctx: Context) -> None:
    """Raises TrainingFailed with the user's traceback; errors with a reason of their own pass.

    The time of the failure tells the driver which rank failed first.
    """
    try:
        function(ctx)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - user code may raise anything
        found = error if isinstance(error, FlywheelError) else failure(error)
        found.failed_at = time.time()  # type: ignore[attr-defined]
        raise found from None


def seed_generators(seed: int) -> None:
    """Seed Python's, numpy's and torch's global generators, equally on every rank."""
    import random

    import numpy as np

    random.seed(seed)
    np.random.seed(seed % (1 << 32))
    torch.manual_seed(seed)


def main(spec_uri: str) -> int:
    """Run one rank that a launcher started; rank 0 writes the outcome of a success."""
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    store = objects.open_store()
    spec = LaunchSpec.from_json(objects.read(store, spec_uri))
    spec = replace(spec, attempt=int(os.environ.get("FLYWHEEL_ATTEMPT", spec.attempt)))
    device = local_device()
    if world > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        outcome = call(spec.function, spec, store, rank=rank, world_size=world, device=device, stop=stop)
        if dist.is_initialized():
            dist.barrier()
    except FlywheelError as error:
        sys.stderr.write(f"{error.reason}: {error.message}\n")
        return 1
    if rank == 0:
        objects.write(store, spec.outcome_uri, outcome.to_json())
    if dist.is_initialized():
        dist.destroy_process_group()
    return 0


def local_device() -> torch.device:
    """The GPU of this rank on its machine, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
