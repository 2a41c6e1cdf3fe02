"""What the platform costs a training step: against the same loop without it, and against torchrun.

The loop trains a network of three layers on the CPU. With the platform, each step logs two metrics to a
trainer process, which stores them in memory, and asks `ctx.should_stop()`; without, it does neither.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import grpc
import torch
import torch.distributed as dist
from torch import nn

from bench import measure
from flywheel_job import objects
from flywheel_job.context import Context
from flywheel_job.launch import LaunchSpec, Resources
from flywheel_job.outcome import Outcome
from flywheel_job.reporting import MetricReporter
from flywheel_protos.trainer.v1 import trainer_pb2 as pb
from flywheel_protos.trainer.v1 import trainer_pb2_grpc

ROUNDS = 5
WIDTH, BATCH = 512, 256
BLOCK = 20
"""Steps that are timed together, alternately with and without the platform."""
BLOCKS = 20
WORKERS, STEPS, WARM = 2, 200, 40
PROJECT = "projects/p"
FUNCTION = "bench.trainer.steps:train"


class Loop:
    """A network, its optimizer and one batch."""

    def __init__(self, *, ddp: bool = False) -> None:
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Linear(64, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1)
        )
        self._model: nn.Module = nn.parallel.DistributedDataParallel(net) if ddp else net
        self._optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
        self._rows, self._labels = torch.randn(BATCH, 64), torch.rand(BATCH, 1)

    def step(self) -> float:
        loss = nn.functional.binary_cross_entropy_with_logits(self._model(self._rows), self._labels)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        return loss.item()


def with_platform(ctx: Context, loss: float, step: int) -> None:
    """What a loop on the platform does after each step."""
    ctx.log({"loss": loss, "learning_rate": 1e-3}, step)
    ctx.should_stop()


def without_platform(loss: float, step: int) -> None:
    """What a loop of torchrun does after each step."""


def step_seconds(loop: Loop, after: Callable[[float, int], None]) -> float:
    """The median of the seconds of a step, after WARM steps."""
    found = []
    for step in range(1, WARM + STEPS + 1):
        begin = time.perf_counter()
        after(loop.step(), step)
        found.append(time.perf_counter() - begin)
    return statistics.median(found[WARM:])


def train(ctx: Context) -> None:
    """The function of the job."""
    seconds = step_seconds(Loop(ddp=True), lambda loss, step: with_platform(ctx, loss, step))
    ctx.log({"step_seconds": seconds}, WARM + STEPS + 1)


def run(only: str) -> Iterable[measure.Row]:
    """The rows whose name contains `only`."""
    overhead, ddp = "step with ctx.log and ctx.should_stop", f"DDP step of {WORKERS} workers on Ray"
    if only in overhead:
        pairs = alone()
        yield measure.compared(overhead, "ms", "the same loop without", pairs, measure.at_most(1.03))
    if only in ddp:
        with tempfile.TemporaryDirectory(prefix="flywheel-bench-") as name:
            environment = os.environ | {objects.STORE_FOLDER: name}
            pairs = measure.alternating(
                ROUNDS,
                lambda: printed([sys.executable, "-m", "bench.trainer.steps", "ray", name], environment),
                lambda: printed(torchrun(), environment),
            )
        yield measure.compared(ddp, "ms", "torchrun", pairs, measure.at_most(1.15))


def alone() -> list[tuple[float, float]]:
    """Milliseconds of a step (with, without) the platform, of each round, in this process.

    They are CPU time of all threads, with that of the thread that sends metrics: on a shared machine the
    time on the clock varies by more than the bound.
    """
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="flywheel-bench-") as name, run_of_trainer() as spec:
        os.environ[objects.STORE_FOLDER] = name
        loop, pairs, step = Loop(), [], 0
        with MetricReporter(spec.trainer_address, spec.run) as reporter:
            ctx = Context(spec, objects.open_store(), reporter)
            for number in range(-1, ROUNDS):
                seconds: dict[bool, list[float]] = {True: [], False: []}
                for block in range(2 * BLOCKS):
                    platform = bool((block + block // 2) % 2)  # with, without, without, with, …
                    begin = time.process_time()
                    for _ in range(BLOCK):
                        step += 1
                        loss = loop.step()
                        if platform:
                            with_platform(ctx, loss, step)
                    seconds[platform].append((time.process_time() - begin) / BLOCK * 1e3)
                if number >= 0:  # the first round warms up
                    pairs.append((statistics.median(seconds[True]), statistics.median(seconds[False])))
        assert not reporter.run_ended.is_set()
    return pairs


@contextlib.contextmanager
def run_of_trainer() -> Iterator[LaunchSpec]:
    """A job whose metrics go to a run of a trainer with stores in memory."""
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    command = [sys.executable, "-m", "bench.trainer.memory_trainer"]
    with subprocess.Popen(command, text=True, **pipes) as process:
        assert process.stderr is not None
        address = process.stderr.readline().strip()
        with grpc.insecure_channel(address) as channel:
            stub = trainer_pb2_grpc.TrainerServiceStub(channel)
            stub.CreateExperiment(pb.CreateExperimentRequest(parent=PROJECT, experiment_id="bench"))
            run = pb.Run(experiment=f"{PROJECT}/experiments/bench")
            created = stub.CreateRun(pb.CreateRunRequest(parent=PROJECT, run=run)).run
        yield LaunchSpec(
            job=f"{PROJECT}/jobs/j",
            run=created.name,
            function=FUNCTION,
            output_uri="s3://b/artifacts",
            outcome_uri="s3://b/outcome.json",
            checkpoint_uri="s3://b/checkpoints",
            workers=WORKERS,
            resources=Resources(cpus=1),
            trainer_address=address,
        )
        process.communicate()


def torchrun() -> list[str]:
    """The command of the other side."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={WORKERS}"]
    return [*launcher, "-m", "bench.trainer.steps", "torchrun"]


def printed(command: list[str], environment: dict[str, str]) -> float:
    """The milliseconds of a step that the command prints."""
    found = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True, text=True, env=environment
    )
    step = next(json.loads(line) for line in found.stdout.splitlines() if "step_ms" in line)
    measure.console.print(f"  {step['side']}: {step['step_ms']:.2f} ms a step")
    return float(step["step_ms"])


def main() -> None:
    """Print the milliseconds of a step of one side."""
    if sys.argv[1] == "torchrun":
        dist.init_process_group("gloo")
        seconds = step_seconds(Loop(ddp=True), without_platform)
        rank = dist.get_rank()
        dist.destroy_process_group()
        if rank == 0:
            print(json.dumps({"side": "torchrun", "step_ms": seconds * 1e3}), flush=True)
        os._exit(0)  # a thread of gloo that still runs would abort the process at its usual end
    import ray

    from flywheel_job.driver import run_on_ray

    variables = {
        name: os.environ[name] for name in (objects.STORE_FOLDER, "PYTHONPATH") if name in os.environ
    }
    with run_of_trainer() as spec:
        ray.init(
            num_cpus=WORKERS,
            include_dashboard=False,
            logging_level="error",
            log_to_driver=False,
            object_store_memory=128 * 1024 * 1024,
            runtime_env={"env_vars": variables},
        )
        run_on_ray(spec)
        ray.shutdown()
    outcome = Outcome.from_json(objects.read(objects.open_store(), spec.result_uri))
    [seconds] = [one.value for one in outcome.points if one.key == "step_seconds"]
    print(json.dumps({"side": "Ray", "step_ms": seconds * 1e3}), flush=True)


if __name__ == "__main__":
    main()
