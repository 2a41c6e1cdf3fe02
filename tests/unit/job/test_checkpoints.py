"""Checkpoints of one process: completeness, pruning, what does not fit."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyarrow import fs
from torch import nn

from flywheel_job.checkpoints import Checkpoints
from flywheel_job.errors import CorruptCheckpoint, WrongCheckpoint

URI = "s3://b/jobs/j/checkpoints"


def checkpoints(folder: Path, attempt: int = 1) -> Checkpoints:
    store = fs.SubTreeFileSystem(str(folder), fs.LocalFileSystem())
    return Checkpoints(store, URI, rank=0, world=1, attempt=attempt)


def training(width: int = 3) -> tuple[nn.Module, torch.optim.Optimizer, Any]:
    """A model after one step with momentum."""
    torch.manual_seed(width)
    model = nn.Linear(width, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    step(model, optimizer, schedule)
    return model, optimizer, schedule


def step(model: nn.Module, optimizer: torch.optim.Optimizer, schedule: Any) -> None:
    optimizer.zero_grad()
    model(torch.ones(4, model.in_features)).square().sum().backward()
    optimizer.step()
    schedule.step()


def folders(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "b/jobs/j/checkpoints").iterdir())


def test_a_restored_training_continues_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    model, optimizer, schedule = training()
    checkpoints(tmp_path).save(
        7, model, optimizer, {"schedule": schedule, "best": 0.5}, {"train": {"epoch": 3}}
    )
    expected_random = (torch.rand(1).item(), np.random.random(), random.random())
    step(model, optimizer, schedule)
    torch.manual_seed(99)
    again = nn.Linear(3, 2)
    other = torch.optim.AdamW(again.parameters(), lr=0.1)
    other_schedule = torch.optim.lr_scheduler.ExponentialLR(other, 0.5)
    found = checkpoints(tmp_path, 2).restore(again, other, {"schedule": other_schedule})
    assert found is not None
    restored, positions = found
    assert (restored.step, restored.values) == (7, {"best": 0.5})
    assert positions == {"train": [{"epoch": 3}]}
    assert (torch.rand(1).item(), np.random.random(), random.random()) == expected_random
    step(again, other, other_schedule)
    assert torch.equal(again.weight, model.weight)
    assert other.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"] == 0.025


def test_nothing_is_restored_without_a_checkpoint(tmp_path: Path) -> None:
    model, optimizer, _ = training()
    assert checkpoints(tmp_path).restore(model, optimizer, {}) is None


def test_the_newest_two_checkpoints_are_kept(tmp_path: Path) -> None:
    model, optimizer, _ = training()
    for number in (1, 2, 10):
        checkpoints(tmp_path).save(number, model, optimizer, {}, {})
    assert folders(tmp_path) == ["000000000002-000001", "000000000010-000001"]


def test_a_checkpoint_without_marker_is_ignored_and_deleted(tmp_path: Path) -> None:
    model, optimizer, _ = training()
    checkpoints(tmp_path).save(1, model, optimizer, {}, {})
    checkpoints(tmp_path).save(2, model, optimizer, {}, {})
    (tmp_path / "b/jobs/j/checkpoints/000000000002-000001/complete.json").unlink()
    found = checkpoints(tmp_path, 2).restore(model, optimizer, {})
    assert found is not None
    assert found[0].step == 1
    assert folders(tmp_path) == ["000000000001-000001"]


def test_a_checkpoint_with_a_damaged_file_is_refused(tmp_path: Path) -> None:
    model, optimizer, _ = training()
    checkpoints(tmp_path).save(1, model, optimizer, {}, {})
    (tmp_path / "b/jobs/j/checkpoints/000000000001-000001/__0_0.distcp").write_bytes(b"short")
    with pytest.raises(CorruptCheckpoint, match=r"__0_0\.distcp has 5 bytes"):
        checkpoints(tmp_path).restore(model, optimizer, {})


@pytest.mark.parametrize("other", [nn.Linear(4, 2), nn.Sequential(nn.Linear(3, 2))])
def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path, other: nn.Module) -> None:
    model, optimizer, _ = training()
    checkpoints(tmp_path).save(1, model, optimizer, {}, {})
    with pytest.raises(WrongCheckpoint, match="does not fit"):
        checkpoints(tmp_path).restore(other, None, {})
