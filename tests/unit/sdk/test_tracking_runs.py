"""Runs logged by a script: values, states, outages, crashes of the process, the bound of the spool."""

from __future__ import annotations

import asyncio
import math
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import flywheel as fw
from flywheel.errors import FlywheelError
from flywheel.tracking.errors import RunFinished, SpoolFull, TrackingError
from flywheel.tracking.syncing import sync_spools
from flywheel.tracking.values import ARTIFACT_PART, MAX_ARTIFACT_NAME, MAX_KEY, MAX_VALUE, METRIC_KEY
from flywheel.tracking.writing import MAX_BUFFERED_POINTS
from flywheel_common.signature import FLOAT32, InputSpec, OutputKind, OutputSpec, Signature, TensorSpec
from flywheel_common.system_metrics import SystemMetrics
from flywheel_trainer.fakes.tracking import RunRecord
from flywheel_trainer.runs import limits, metric_points
from flywheel_trainer.runs.run import RunName, RunState
from tests.support.ports import free_port
from tests.support.servers.restarted_trainer import RestartedTrainer

Start = Callable[..., fw.Run]


@pytest.fixture
def trainer() -> Iterator[RestartedTrainer]:
    started = RestartedTrainer()
    started.start()
    yield started
    started.close()


@pytest.fixture
def start(trainer: RestartedTrainer, tmp_path: Path) -> Start:
    """`fw.run` for the trainer, without metrics of the machine."""

    def run(experiment: str = "late", **options: Any) -> fw.Run:
        values = {"address": trainer.address, "spool": tmp_path, "system_metrics": False, **options}
        return fw.run(experiment, **values)

    return run


def stored(trainer: RestartedTrainer, run: fw.Run) -> RunRecord:
    return trainer.runs.record(RunName.parse(run.name))


def values(record: RunRecord, key: str) -> list[float]:
    return [point.value for (name, _), point in sorted(record.points.items()) if name == key]


def test_keys_and_limits_are_those_of_the_trainer() -> None:
    assert metric_points.KEY.pattern == METRIC_KEY.pattern
    assert limits.ARTIFACT_PART.pattern == ARTIFACT_PART.pattern
    here = (MAX_ARTIFACT_NAME, MAX_KEY, MAX_VALUE)
    assert (limits.MAX_ARTIFACT_NAME, limits.MAX_KEY, limits.MAX_VALUE) == here


def test_a_run_is_logged_by_a_script(trainer: RestartedTrainer, start: Start, tmp_path: Path) -> None:
    options = {"params": {"lr": 0.1}, "name": "first", "tags": {"team": "a"}, "notes": "# why"}
    with start(**options) as run:
        for step in range(100):
            run.log({"loss": 1 / (step + 1), "auc": step}, step=step)
        run.log_params({"seed": 7})
        run.set_tags({"team": "b"})
        run.rename("second")
        with run.child(name="fold") as child:
            child.log({"loss": 1.0})
    record = stored(trainer, run)
    found = record.run
    assert (RunState.SUCCEEDED, "late", "second", "# why") == (
        found.state,
        found.experiment,
        found.display_name,
        found.notes,
    )
    assert ({"lr": "0.1", "seed": "7"}, {"team": "b"}) == (found.params, found.tags)
    assert {"loss": 0.01, "auc": 99.0} == found.metrics
    assert [1 / (step + 1) for step in range(100)] == values(record, "loss")
    assert run.name == stored(trainer, child).run.parent_run
    assert "python" in found.environment
    assert [] == list(tmp_path.iterdir()), "a spool that was sent is removed"


async def test_a_run_is_logged_by_asynchronous_code(trainer: RestartedTrainer, start: Start) -> None:
    async with await asyncio.to_thread(start) as run:
        run.log({"loss": 0.5})
        run.log({"loss": 0.25})
    record = stored(trainer, run)
    assert (RunState.SUCCEEDED, [0.5, 0.25]) == (record.run.state, values(record, "loss"))


def test_an_exception_ends_a_run_as_failed(trainer: RestartedTrainer, start: Start) -> None:
    with pytest.raises(ZeroDivisionError), start() as run:
        run.log({"loss": 1 / 0})
    found = stored(trainer, run).run
    assert RunState.FAILED is found.state
    assert "ZeroDivisionError: division by zero" in found.error_message
    with pytest.raises(KeyboardInterrupt), start() as run:
        raise KeyboardInterrupt
    assert RunState.CANCELLED is stored(trainer, run).run.state
    with pytest.raises(RunFinished):
        run.log({"loss": 1.0})


def test_values_that_are_not_finite_are_stored_as_such(trainer: RestartedTrainer, start: Start) -> None:
    with start() as run:
        run.log({"a": math.nan, "b": math.inf, "c": -math.inf})
    found = stored(trainer, run).run.metrics
    assert ["nan", "inf", "-inf"] == [str(found[key]) for key in "abc"]


@pytest.mark.parametrize(
    "call",
    [
        lambda run: run.log({"k" * 10_240: 1.0}),
        lambda run: run.log({"": 1.0}),
        lambda run: run.log({"loss": "high"}),
        lambda run: run.log({"loss": None, "ok": 1.0}),
        lambda run: run.log({"loss": 1.0}, step=1.5),
        lambda run: run.log({"loss": 1.0}, step=2**63),
        lambda run: run.log_params({"k" * 251: 1}),
        lambda run: run.log_params({"k": "v" * 8_001}),
        lambda run: run.set_tags({"k": "a\0b"}),
        lambda run: run.log_text("x", "../x"),
        lambda run: run.log_text("x", "/etc/passwd"),
        lambda run: run.log_artifact(__file__, "a/../../b"),
        lambda run: run.log_model(b"", Signature((), (), OutputSpec(OutputKind.BINARY, ""))),
    ],
)
def test_a_value_that_cannot_be_logged_is_refused_at_its_line(
    trainer: RestartedTrainer, start: Start, call: Callable[[fw.Run], None]
) -> None:
    with start() as run, pytest.raises(TrackingError):
        call(run)
    found = stored(trainer, run)
    assert ({}, {}, ()) == (found.points, found.run.params, found.run.artifacts)


def test_a_run_that_the_trainer_refuses_fails_at_its_start(start: Start, tmp_path: Path) -> None:
    for options in ({"experiment": "Not an id"}, {"name": "n" * 251}, {"parent": "none"}, {"resume": "none"}):
        with pytest.raises(FlywheelError):
            start(**options)
    assert [] == list(tmp_path.iterdir())


def test_files_and_models_are_artifacts(trainer: RestartedTrainer, start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "plots"
    (folder / "deep").mkdir(parents=True)
    (folder / "roc.png").write_bytes(b"roc")
    (folder / "deep" / "pr.png").write_bytes(b"x" * 2_000_000)
    inputs, tensors = (InputSpec("v__x", FLOAT32, (), "x"),), (TensorSpec("x", FLOAT32, (1,)),)
    signature = Signature(inputs, tensors, OutputSpec(OutputKind.BINARY, "score"))
    with start(spool=tmp_path / "spool") as run:
        run.log_artifact(folder)
        run.log_artifact(folder / "roc.png", "other/name.png")
        (folder / "roc.png").unlink()
        run.log_model(b"onnx", signature)
    found = {artifact.name: artifact for artifact in stored(trainer, run).run.artifacts}
    assert {"plots/roc.png", "plots/deep/pr.png", "other/name.png"} < set(found)
    assert {"model/model.onnx", "model/signature.json"} < set(found)
    assert (3, 2_000_000) == (found["other/name.png"].size_bytes, found["plots/deep/pr.png"].size_bytes)


def test_no_point_is_lost_while_the_trainer_is_away(trainer: RestartedTrainer, start: Start) -> None:
    points = 60_000
    with start(lease_seconds=1.0) as run:
        for step in range(points):
            if step == 1_000:
                run.flush()
                trainer.stop()
            run.log({"loss": float(step)}, step=step)
        assert not run.flush(timeout=0.5)
        trainer.start()
    record = stored(trainer, run)
    assert list(map(float, range(points))) == values(record, "loss")
    assert RunState.SUCCEEDED is record.run.state


def test_a_run_starts_and_ends_while_the_trainer_is_away(
    trainer: RestartedTrainer, start: Start, tmp_path: Path
) -> None:
    trainer.stop()
    before = time.time()
    run = start(finish_timeout=0.2)
    run.log({"loss": 0.5}, step=1)
    run.log_text("text", "a.txt")
    with pytest.warns(RuntimeWarning, match="flywheel runs sync"):
        run.finish()
    (folder,) = tmp_path.iterdir()
    trainer.start()
    assert [(run.name, True)] == [(one.run, one.sent) for one in sync_spools(tmp_path, 10.0)]
    assert not folder.exists()
    record = stored(trainer, run)
    assert (RunState.SUCCEEDED, [0.5]) == (record.run.state, values(record, "loss"))
    assert ["a.txt"] == [artifact.name for artifact in record.run.artifacts]
    assert record.run.started_at is not None
    assert record.run.ended_at is not None
    assert before - 1 < record.run.started_at.timestamp() < record.run.ended_at.timestamp() < time.time()


SCRIPT = """
import os, sys, time
import flywheel as fw
run = fw.run("late", address=sys.argv[1], spool=sys.argv[2], system_metrics=False)
for step in range(5000):
    run.log({"loss": float(step)}, step=step)
time.sleep(1)
print(run.name, flush=True)
os.kill(os.getpid(), 9)
"""


def test_points_of_a_killed_process_are_sent_and_its_run_is_continued(
    trainer: RestartedTrainer, start: Start, tmp_path: Path
) -> None:
    address = trainer.address
    trainer.stop()
    killed = subprocess.run(
        [sys.executable, "-c", SCRIPT, address, str(tmp_path)], capture_output=True, text=True, check=False
    )
    trainer.start()
    with start(resume=killed.stdout.strip(), rewind_to=2_999) as run:
        assert killed.stdout.strip() == run.name
        run.log({"loss": -1.0})
    record = stored(trainer, run)
    assert [*map(float, range(3_000)), -1.0] == values(record, "loss")
    assert (RunState.SUCCEEDED, 2) == (record.run.state, record.run.generation)


def test_a_former_process_does_not_write_a_continued_run(trainer: RestartedTrainer, start: Start) -> None:
    run = start()
    run.log({"loss": 1.0}, step=1)
    assert run.flush()
    with start(resume=run.name, spool=run.spool_folder.parent / "other", rewind_to=0) as newer:
        run.log({"loss": 2.0}, step=2)
        assert run.flush()
        newer.log({"loss": 3.0}, step=2)
    with pytest.warns(RuntimeWarning, match="RUN_CONTINUED"):
        run.finish()
    record = stored(trainer, run)
    assert ([3.0], RunState.SUCCEEDED) == (values(record, "loss"), record.run.state)


def test_repeated_steps_keep_their_first_value_and_are_reported(
    trainer: RestartedTrainer, start: Start
) -> None:
    run = start()
    run.log({"loss": 2.0}, step=5)
    run.log({"loss": 1.0}, step=3)
    run.log({"loss": 9.0}, step=5)
    with pytest.warns(RuntimeWarning, match="1 points have a step that was logged before"):
        run.finish()
    assert [1.0, 2.0] == values(stored(trainer, run), "loss")


def test_a_full_spool_drops_points_and_reports_them(trainer: RestartedTrainer, start: Start) -> None:
    trainer.stop()
    run = start(max_spool_bytes=50_000)
    for step in range(20_000):
        run.log({"loss": float(step)}, step=step)
    run.flush(timeout=0.3)
    with pytest.raises(SpoolFull):
        run.log_text("x" * 60_000, "big.txt")
    trainer.start()
    with pytest.warns(RuntimeWarning, match="were dropped"):
        run.finish()
    record = stored(trainer, run)
    kept = values(record, "loss")
    assert run.dropped_points == 20_000 - len(kept) > 0
    assert str(run.dropped_points) == record.run.tags["flywheel.dropped_points"]
    assert RunState.SUCCEEDED is record.run.state


FULL_DISK = """
import resource, sys
import flywheel as fw
run = fw.run("late", address=sys.argv[1], spool=sys.argv[2], system_metrics=False)
run.log({"first": 1.0}, step=0)
run.flush()
# No file may grow further, as on a disk that is full.
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))
for step in range(600_000):
    run.log({"loss": 1.0}, step=step)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
run.log({"last": 1.0}, step=1)
run.finish()
print(run.name, run.dropped_points)
"""


def test_a_full_disk_ends_no_program_and_what_is_lost_is_counted(
    trainer: RestartedTrainer, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, trainer.address, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    name, dropped = done.stdout.split()
    record = trainer.runs.record(RunName.parse(name))
    assert 600_000 - len(values(record, "loss")) == int(dropped) > 0
    assert {"first", "last"} < set(record.run.metrics)
    assert dropped == record.run.tags["flywheel.dropped_points"]
    assert RunState.SUCCEEDED is record.run.state


def test_a_run_with_a_short_lease_stays_alive_without_points(trainer: RestartedTrainer, start: Start) -> None:
    with start(lease_seconds=1.0) as run:
        assert run.flush()
        first = stored(trainer, run).heartbeat
        time.sleep(1.2)
        assert stored(trainer, run).heartbeat > first


def test_metrics_of_the_machine_are_logged(trainer: RestartedTrainer, start: Start) -> None:
    with start(system_metrics=True) as run:
        time.sleep(0.5)
    found = stored(trainer, run).run.metrics
    assert found["system/cpu_percent"] >= 0
    assert found["system/memory_bytes"] > 1e6


@pytest.mark.parametrize(("initialized", "expected"), [(True, {"system/gpu_memory_bytes": 5.0}), (False, {})])
def test_memory_of_gpus_is_logged_without_starting_cuda(
    monkeypatch: pytest.MonkeyPatch, initialized: bool, expected: dict[str, float]
) -> None:
    cuda = SimpleNamespace(
        is_initialized=lambda: initialized,
        device_count=lambda: 2,
        memory_reserved=lambda device: [2, 3][device],
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))  # type: ignore[arg-type]
    found = SystemMetrics().read()
    assert expected == {key: value for key, value in found.items() if "gpu" in key}


def test_threads_log_to_one_run(trainer: RestartedTrainer, start: Start) -> None:
    with start() as run:

        def work(number: int) -> None:
            for step in range(2_000):
                run.log({f"loss-{number}": float(step)}, step=step)

        threads = [threading.Thread(target=work, args=[number]) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    record = stored(trainer, run)
    for number in range(4):
        assert list(map(float, range(2_000))) == values(record, f"loss-{number}")


def test_memory_is_bounded_while_the_trainer_is_away(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    points = MAX_BUFFERED_POINTS + 50_000
    options: Any = {"spool": tmp_path, "system_metrics": False, "finish_timeout": 0.1}
    run = fw.run("late", address=address, **options)
    for step in range(points):
        run.log({"loss": 1.0}, step=step)
        if step % 10_000 == 0:
            assert run.buffered_points <= MAX_BUFFERED_POINTS + 1
    with pytest.warns(RuntimeWarning, match="flywheel runs sync"):
        run.finish()
    assert 0 == run.dropped_points
