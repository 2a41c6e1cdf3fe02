"""What a job stores and reads, on a folder and on real S3: checkpoints, data, artifacts."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from pyarrow import fs
from torch import nn

from flywheel_common.config import S3Settings
from flywheel_common.storage.s3 import arrow_filesystem
from flywheel_job import objects
from flywheel_job.checkpoints import Checkpoints
from flywheel_job.data.parquet import ParquetFiles
from flywheel_job.data.shard import Shard


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[fs.FileSystem, str]:
    """A store, and the address of an empty bucket."""
    if request.param == "folder":
        return fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), "s3://b"
    settings: S3Settings = request.getfixturevalue("s3_settings")
    return arrow_filesystem(settings), f"s3://{settings.s3_bucket}"


def training(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 256), nn.Linear(256, 3))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 64)).square().sum().backward()
    optimizer.step()
    return model, optimizer


def checkpoints(place: tuple[fs.FileSystem, str], attempt: int) -> Checkpoints:
    store, bucket = place
    return Checkpoints(store, f"{bucket}/jobs/j/checkpoints", rank=0, world=1, attempt=attempt)


def prefixes(place: tuple[fs.FileSystem, str]) -> list[str]:
    store, bucket = place
    return sorted(
        {path.split("/")[-2] for path in objects.files_under(store, f"{bucket}/jobs/j/checkpoints")}
    )


def test_the_newest_complete_checkpoint_is_restored(place: tuple[fs.FileSystem, str]) -> None:
    saved: dict[int, Any] = {}
    for step in (3, 6, 9):
        model, optimizer = training(step)
        checkpoints(place, 1).save(
            step, model, optimizer, {"loss": step / 2}, {"train": [0, {"epoch": step}]}
        )
        saved[step] = {key: value.clone() for key, value in model.state_dict().items()}
    assert prefixes(place) == ["000000000006-000001", "000000000009-000001"]
    store, bucket = place
    objects.delete(store, f"{bucket}/jobs/j/checkpoints/000000000009-000001/complete.json")

    model, optimizer = training(77)
    found = checkpoints(place, 2).restore(model, optimizer, {})
    assert found is not None
    restored, positions = found
    assert (restored.step, restored.values) == (6, {"loss": 3.0})
    assert positions == {"train": [[0, {"epoch": 6}]]}
    assert all(torch.equal(value, saved[6][key]) for key, value in model.state_dict().items())
    assert prefixes(place) == ["000000000006-000001"]


def test_a_job_without_checkpoints_restores_nothing(place: tuple[fs.FileSystem, str]) -> None:
    model, optimizer = training(1)
    assert checkpoints(place, 1).restore(model, optimizer, {}) is None


def test_the_rows_of_a_data_set_are_streamed(place: tuple[fs.FileSystem, str]) -> None:
    store, bucket = place
    for number in range(3):
        buffer = io.BytesIO()
        pl.DataFrame({"row": range(100 * number, 100 * number + 100)}).write_parquet(
            buffer, row_group_size=40
        )
        objects.write(store, f"{bucket}/set/part-{number}.parquet", buffer.getvalue())
    shards = [
        Shard(
            ParquetFiles(store, f"{bucket}/set/"), rank=rank, ranks=2, batch_size=30, seed=1, window_rows=50
        )
        for rank in range(2)
    ]
    rows = [int(row) for shard in shards for batch in shard for row in batch["row"]]
    assert sorted(rows) == list(range(300))


def test_bytes_are_stored_as_they_are_under_any_name(place: tuple[fs.FileSystem, str]) -> None:
    store, bucket = place
    for name in ("a.tar.gz", "b.bz2", "c.zst", "d"):
        objects.write(store, f"{bucket}/{name}", b"hello")
        assert objects.read(store, f"{bucket}/{name}") == b"hello"


def test_an_artifact_is_stored_under_its_digest(place: tuple[fs.FileSystem, str]) -> None:
    store, bucket = place
    uri, digest = objects.put_by_digest(store, f"{bucket}/artifacts", b"hello")
    assert (uri, digest) == objects.put_by_digest(store, f"{bucket}/artifacts", b"hello")
    assert objects.read(store, uri) == b"hello"
    assert uri == f"{bucket}/artifacts/{digest[:2]}/{digest}"
