"""TUNE jobs whose training code has a known optimum, and the process that drives their trials."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flywheel as fw
from tests.support.peers.trainer import TRAINING_SET

CODE = """
import time


def train(ctx):
    time.sleep({seconds})
    for step in (1, 2, 3):
        ctx.log({{"loss": (ctx.params["x"] - 0.5) ** 2 + 1 / step, "offset": ctx.params["offset"]}}, step)
"""
SPACE = {"x": fw.FloatRange(-1, 1), "offset": fw.Choices([1, 2])}


def tune_job(folder: Path, trial_seconds: float = 0, **fields: Any) -> fw.TuneJob:
    """Minimizes (x - 0.5)^2 + 1/3; each trial sleeps for trial_seconds."""
    (folder / "objective.py").write_text(CODE.format(seconds=trial_seconds))
    train = fw.TrainJob(
        function="objective.py:train",
        source=folder,
        experiment="late",
        data={"train": TRAINING_SET},
        cpus_per_worker=0.5,
    )
    return fw.TuneJob(train, **{"space": SPACE, "minimize": "loss", "seed": 1, **fields})


def driver_of(job: str) -> int | None:
    """The process that drives the trials of a job; None while there is none."""
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        own = any(job.rpartition("/")[2].encode() in word for word in words)
        if own and b"flywheel_job.tuning" in words and b"flywheel_job.launcher" not in words:
            return int(folder.name)
    return None
