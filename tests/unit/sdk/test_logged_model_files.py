"""ONNX models that a run logs: each artifact is one file with all weights."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import flywheel as fw
from flywheel.onnx_weights import MAX_BYTES
from flywheel.tracking.errors import TrackingError
from flywheel_trainer.runs.run import RunName
from tests.support.builders.onnx_models import constant_half, with_weights_outside
from tests.support.servers.restarted_trainer import RestartedTrainer

Start = Callable[[], fw.Run]


@pytest.fixture
def trainer() -> Iterator[RestartedTrainer]:
    started = RestartedTrainer()
    started.start()
    yield started
    started.close()


@pytest.fixture
def start(trainer: RestartedTrainer, tmp_path: Path) -> Start:
    return lambda: fw.run(
        "late", address=trainer.address, spool=tmp_path / "spool", system_metrics=False, finish_timeout=10.0
    )


def names(trainer: RestartedTrainer, run: fw.Run) -> list[str]:
    return [artifact.name for artifact in trainer.runs.record(RunName.parse(run.name)).run.artifacts]


def test_a_model_is_logged_with_the_weights_of_its_other_files(
    trainer: RestartedTrainer, start: Start, tmp_path: Path
) -> None:
    file = with_weights_outside(constant_half(), tmp_path / "exported", "late.weights")
    with start() as run:
        run.log_model(file)
        (tmp_path / "exported" / "late.weights").unlink()
        with pytest.raises(FileNotFoundError, match=r"late\.weights"):
            run.log_model(file, name="gone")
        for model in (file.read_bytes(), onnx.ModelProto.FromString(file.read_bytes())):
            with pytest.raises(TrackingError, match=r"'late\.weights': give the path"):
                run.log_model(model, name="elsewhere")
    assert ["model/model.onnx"] == names(trainer, run)
    with fw.connect(trainer=trainer.address) as client:
        stored = client.download_run_artifact(run.name, "model/model.onnx", tmp_path / "stored.onnx")
    session = onnxruntime.InferenceSession(stored)
    assert 0.5 == session.run(["SCORE"], {"INPUT": np.ones((1, 1), np.float32)})[0].item()


def test_a_model_that_one_file_cannot_hold_is_refused(
    trainer: RestartedTrainer, start: Start, tmp_path: Path
) -> None:
    file = with_weights_outside(constant_half(), tmp_path / "exported")
    os.truncate(tmp_path / "exported" / "model.bin", MAX_BYTES)  # a sparse file
    with start() as run, pytest.raises(TrackingError, match="log_artifact") as caught:
        run.log_model(file)
    assert str(MAX_BYTES) in str(caught.value)
    assert [] == names(trainer, run)


def test_what_is_no_model_is_refused(trainer: RestartedTrainer, start: Start, tmp_path: Path) -> None:
    with start() as run:
        for wrong in (None, 3, [b"onnx"]):
            with pytest.raises(TrackingError, match="path"):
                run.log_model(wrong)
    assert [] == names(trainer, run)


WITHOUT_ONNX = """
import sys
sys.modules["onnx"] = None
from pathlib import Path
from flywheel.tracking.errors import TrackingError
from flywheel.tracking.registering import described_model
whole, parts = map(Path, sys.argv[1:])
assert described_model(whole, None) == (whole, None)
assert described_model(whole.read_bytes(), None) == (whole.read_bytes(), None)
try:
    described_model(parts, None)
except TrackingError as error:
    print(error)
"""


def test_only_weights_in_other_files_need_the_extra(tmp_path: Path) -> None:
    (tmp_path / "whole.onnx").write_bytes(constant_half())
    parts = with_weights_outside(constant_half(), tmp_path / "exported")
    command = [sys.executable, "-c", WITHOUT_ONNX, str(tmp_path / "whole.onnx"), str(parts)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "flywheel[onnx]" in done.stdout, done.stderr
