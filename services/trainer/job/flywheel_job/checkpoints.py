"""Checkpoints of a job: saved by all ranks together, and complete when their marker exists.

Every checkpoint has a prefix of its own, `{step}-{attempt}`. All ranks write their parts of the state (torch
DCP) and a file with their data position and random state; rank 0 then writes the marker, which lists all
files. A prefix without a marker is the rest of an attempt that died, and is deleted when a later attempt
restores.
"""

from __future__ import annotations

import json
import random
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from pyarrow import fs
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from flywheel_job import objects
from flywheel_job.checkpoint_storage import reader, writer
from flywheel_job.errors import CorruptCheckpoint, WrongCheckpoint
from flywheel_job.saved_checkpoint import Saved

MARKER = "complete.json"
KEPT = 2
"""Complete checkpoints that are kept: the newest, and the one before it."""
OPTIONS = StateDictOptions(flatten_optimizer_state_dict=True)
"""Flat keys by parameter name, so that stages and shards of other group sizes can load their part."""


@dataclass(frozen=True)
class Restored:
    """What a checkpoint held besides the state of the objects that it was restored into."""

    step: int
    values: Mapping[str, Any]
    """The plain values that were saved (JSON)."""


class Checkpoints:
    """Saves and restores the state of one job. All methods are collective: every rank calls them together."""

    def __init__(
        self,
        store: fs.FileSystem,
        uri: str,
        *,
        rank: int,
        world: int,
        attempt: int,
        initial_uri: str = "",
        report: Callable[[Sequence[Saved]], None] | None = None,
    ) -> None:
        """While there is no checkpoint under `uri`, that under `initial_uri` is restored.

        `report` gets the complete checkpoints under `uri`, after each save and before each restore, so that
        an attempt reports what one before it saved and did not report. It must not raise.
        """
        self._store, self._uri, self._initial_uri = store, uri.rstrip("/"), initial_uri.rstrip("/")
        self._rank, self._world, self._attempt = rank, world, attempt
        self._report, self._known = report, dict[str, Saved]()

    def save(
        self,
        step: int,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        state: Mapping[str, Any],
        positions: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Save under `step`; `metrics` are those of this step.

        `state` has objects with `state_dict`, and plain values (JSON), which must be equal on all ranks.
        `positions` has the data position of this rank for each data set.
        """
        prefix = f"{self._uri}/{step:012d}-{self._attempt:06d}"
        tensors, values = _split(model, optimizer, state)
        path = objects.path_of(prefix)
        with _no_warnings():
            dcp.save(tensors, storage_writer=writer(self._store, path), no_dist=not dist.is_initialized())
        own = {"positions": positions, "random": _random_state()}
        objects.write(self._store, f"{prefix}/rank-{self._rank}.json", json.dumps(own).encode())
        _barrier()
        if self._rank == 0:
            found = self._store.get_file_info(fs.FileSelector(path, recursive=True))
            sizes = {one.path.removeprefix(path + "/"): one.size for one in found if one.is_file}
            marker = {
                "step": step,
                "attempt": self._attempt,
                "world": self._world,
                "values": values,
                "files": sizes,
                "time_us": time.time_ns() // 1000,
                "metrics": dict(metrics or {}),
            }
            objects.write(self._store, f"{prefix}/{MARKER}", json.dumps(marker).encode())
            self._known[prefix] = Saved.of(prefix, marker)
            complete = self._complete(self._uri)
            self._delete(complete[:-KEPT])
            self._tell(complete[-KEPT:])
        _barrier()

    def restore(
        self, model: nn.Module, optimizer: torch.optim.Optimizer | None, state: Mapping[str, Any]
    ) -> tuple[Restored, dict[str, list[Any]]] | None:
        """Load the newest complete checkpoint in place; None if there is none.

        Also returns, for each data set, the positions of all ranks that saved it. The random state is
        restored if the number of ranks is the same. Raises WrongCheckpoint, CorruptCheckpoint.
        """
        chosen: list[Any] = [self._newest() if self._rank == 0 else None]
        if dist.is_initialized():
            dist.broadcast_object_list(chosen)
        if chosen[0] is None:
            return None
        prefix, marker = chosen[0]
        self._check_files(prefix, marker)
        tensors, _ = _split(model, optimizer, state)
        try:
            with _no_warnings():
                dcp.load(
                    tensors,
                    storage_reader=reader(self._store, objects.path_of(prefix)),
                    no_dist=not dist.is_initialized(),
                )
        except (dcp.api.CheckpointException, RuntimeError, ValueError, KeyError) as error:
            raise WrongCheckpoint(
                f"The checkpoint of step {marker['step']} does not fit: {_cause(error)}"
            ) from error
        _load(model, optimizer, state, tensors)
        ranks = range(marker["world"])
        saved = [json.loads(objects.read(self._store, f"{prefix}/rank-{rank}.json")) for rank in ranks]
        if marker["world"] == self._world:
            _set_random_state(saved[self._rank]["random"])
        names = saved[0]["positions"]
        positions = {name: [one["positions"][name] for one in saved] for name in names}
        return Restored(marker["step"], marker["values"]), positions

    def newest_step(self) -> int:
        """The step of the newest complete checkpoint of this job; 0: there is none."""
        complete = self._complete(self._uri)
        return int(complete[-1].rpartition("/")[2].partition("-")[0]) if complete else 0

    def _newest(self) -> tuple[str, dict[str, Any]] | None:
        """Prefix and marker of the newest complete checkpoint. Incomplete older attempts are deleted."""
        complete = self._complete(self._uri)
        self._delete(
            [
                prefix
                for prefix in self._prefixes()
                if prefix not in complete and int(prefix.rpartition("-")[2]) < self._attempt
            ]
        )
        self._tell(complete)
        if not complete and self._initial_uri:
            complete = self._complete(self._initial_uri)
        if not complete:
            return None
        return complete[-1], json.loads(objects.read(self._store, f"{complete[-1]}/{MARKER}"))

    def _tell(self, complete: list[str]) -> None:
        """Report the complete checkpoints; nothing if a marker cannot be read, since training goes on."""
        if self._report is None:
            return
        try:
            for prefix in complete:
                if prefix not in self._known:
                    marker = json.loads(objects.read(self._store, f"{prefix}/{MARKER}"))
                    self._known[prefix] = Saved.of(prefix, marker)
        except (OSError, ValueError, KeyError, TypeError):
            return
        self._known = {prefix: self._known[prefix] for prefix in complete}
        self._report(list(self._known.values()))

    def _prefixes(self) -> list[str]:
        base = objects.path_of(self._uri) + "/"
        folders = {
            path.removeprefix(base).partition("/")[0] for path in objects.files_under(self._store, self._uri)
        }
        return [f"{self._uri}/{folder}" for folder in sorted(folders)]

    def _complete(self, uri: str) -> list[str]:
        """Prefixes with a marker, oldest first."""
        bucket = uri.removesuffix(objects.path_of(uri))
        return [
            bucket + path.removesuffix(f"/{MARKER}")
            for path in objects.files_under(self._store, uri, f"/{MARKER}")
        ]

    def _delete(self, prefixes: list[str]) -> None:
        """The marker first, so that a checkpoint that is half deleted is not complete."""
        for prefix in prefixes:
            objects.delete(self._store, f"{prefix}/{MARKER}")
            objects.delete(self._store, prefix)

    def _check_files(self, prefix: str, marker: dict[str, Any]) -> None:
        path = objects.path_of(prefix)
        found = {
            one.path.removeprefix(path + "/"): one.size
            for one in self._store.get_file_info(fs.FileSelector(path, recursive=True))
        }
        for name, size in marker["files"].items():
            if found.get(name) != size:
                raise CorruptCheckpoint(f"{prefix}/{name} has {found.get(name)} bytes instead of {size}.")


def _split(
    model: nn.Module, optimizer: torch.optim.Optimizer | None, state: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The state that DCP stores, and the plain values."""
    tensors: dict[str, Any] = {"model": get_model_state_dict(model)}
    if optimizer is not None:
        tensors["optimizer"] = get_optimizer_state_dict(model, optimizer, options=OPTIONS)
    values = {}
    for name, one in state.items():
        if hasattr(one, "state_dict"):
            tensors[name] = one.state_dict()
        elif isinstance(one, torch.Tensor):
            tensors[name] = one
        else:
            values[name] = one
    return tensors, values


def _load(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    state: Mapping[str, Any],
    tensors: dict[str, Any],
) -> None:
    set_model_state_dict(model, tensors["model"])
    if optimizer is not None:
        set_optimizer_state_dict(model, optimizer, tensors["optimizer"], options=OPTIONS)
    for name, one in state.items():
        if hasattr(one, "load_state_dict"):
            one.load_state_dict(tensors[name])


def _random_state() -> dict[str, Any]:
    """The states of the global random generators of this process, as JSON."""
    version, internal, gauss = random.getstate()
    name, keys, *rest = np.random.get_state(legacy=True)
    cuda = [one.tolist() for one in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else []
    return {
        "python": [version, list(internal), gauss],
        "numpy": [name, np.asarray(keys).tolist(), *rest],
        "torch": torch.get_rng_state().tolist(),
        "cuda": cuda,
    }


def _set_random_state(saved: dict[str, Any]) -> None:
    version, internal, gauss = saved["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = saved["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(torch.tensor(saved["torch"], dtype=torch.uint8))
    if torch.cuda.is_available() and len(saved["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([torch.tensor(one, dtype=torch.uint8) for one in saved["cuda"]])


@contextmanager
def _no_warnings() -> Iterator[None]:
    """torch warns of a checkpoint by a single process, and of its own deprecated calls."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def _cause(error: BaseException) -> str:
    """The first failure of a rank inside torch's exception."""
    failures = getattr(error, "failures", None)
    inner = next(iter(failures.values()))[0] if failures else error
    return str(inner)[:1000]
