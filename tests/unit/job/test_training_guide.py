"""The program of docs/guides/training.md, as it is written there."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import numpy as np
import polars as pl
from pyarrow import fs

import flywheel as fw
from flywheel.train_job import pack_job
from flywheel_job import objects
from flywheel_job.launch import Column, DataSet, Source
from tests.support.training_job import launch_spec, run_here

GUIDE = Path(__file__).resolve().parents[3] / "docs" / "guides" / "training.md"


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)


def test_the_loop_of_the_guide_trains(tmp_path: Path) -> None:
    loop, submit, _ = blocks()
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "train.py").write_text(loop)
    call = next(node for node in ast.walk(ast.parse(submit)) if isinstance(node, ast.Call))
    fields = {
        one.arg: ast.literal_eval(one.value) for one in call.keywords if one.arg not in {"data", "source"}
    }
    job = fw.TrainJob(source=folder, data={"train": "t"}, **fields)
    packed = pack_job(job)
    assert packed.archive is not None

    store = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    objects.write(store, "s3://b/source", packed.archive.content)
    x = np.random.default_rng(3).normal(size=(2000, 2))
    (tmp_path / "b" / "set").mkdir()
    pl.DataFrame(
        {"v__x": x[:, 0], "v__y": x[:, 1], "label": (x.sum(axis=1) > 0).astype(float)}
    ).write_parquet(tmp_path / "b" / "set" / "0.parquet")
    columns = (Column("v__x", "FLOAT64"), Column("v__y", "FLOAT64"))
    spec = launch_spec(
        job.function,
        source=Source("s3://b/source", packed.archive.sha256),
        params=dict(job.params),
        data={"train": DataSet("s3://b/set/", columns=columns)},
    )
    try:
        outcome = run_here(spec, store)
    finally:
        sys.modules.pop("train", None)
    assert outcome.succeeded, outcome.error_message
    losses = [point.value for point in outcome.points]
    assert len(losses) == 3 * 32
    assert np.mean(losses[-10:]) < 0.2 < np.mean(losses[:10])


def test_the_other_job_of_the_guide_can_be_packed() -> None:
    recipe = blocks()[2].replace("training_set", "'t'")
    names: dict[str, object] = {"fw": fw}
    exec(recipe, names)
    job = names["job"]
    assert isinstance(job, fw.TrainJob)
    pack_job(job)
