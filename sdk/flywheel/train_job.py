"""Training jobs with the user's own code."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from flywheel.errors import SourceError
from flywheel.job_limits import limits_message
from flywheel.source_archive import SourceArchive, check_function, check_requirements, pack, provenance
from flywheel_protos.trainer.v1 import trainer_pb2

MAX_PARAMS_BYTES = 256 * 1024


@dataclass(frozen=True)
class TrainJob:
    """A job that runs `function(ctx)` on `workers` ranks.

    >>> job = fw.TrainJob(function="train.py:train", source=".", experiment="late",
    ...                   data={"train": training_set}, params={"epochs": 3}, workers=2)
    """

    function: str
    """`file.py:function`, the file's path relative to `source`; or a built-in recipe without `source`."""
    source: str | Path | None = "."
    """Folder whose files are submitted, except those that git ignores; None: a built-in recipe."""
    experiment: str = ""
    data: Mapping[str, str] = field(default_factory=dict)
    """Training sets (`projects/{project}/trainingSets/{training_set}`) by the names for `ctx.data(name)`."""
    params: Mapping[str, Any] = field(default_factory=dict)
    """Values for `ctx.params`: numbers, texts, booleans, None, and lists and objects of them."""
    check: str = ""
    """Function that runs before the workers start, such as `train.py:check`; empty: none."""
    export: str = ""
    """Function that runs after the workers have ended and freed their GPUs; empty: none."""
    workers: int = 1
    gpus_per_worker: float = 0
    """A whole number, or a fraction of one GPU that several workers share."""
    cpus_per_worker: float = 0.0
    """0: the setting of the trainer."""
    memory_bytes_per_worker: int = 0
    """0: not reserved."""
    accelerator_type: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables of every worker, such as `NCCL_SOCKET_IFNAME`."""
    seed: int = 0
    requirements: str | Path | None = None
    """File with the job's own packages, such as `requirements.lock`; its path is relative to `source`. With
    a hash in it, every package needs one. None: the packages of the cluster."""
    lock: str | Path | None = None
    """File with the versions of packages, for the provenance; None: `requirements`, else requirements.lock or
    the like."""
    timeout: timedelta | None = None
    """Longest time from the start of an attempt to its end; None: 24 hours."""
    stall_timeout: timedelta | None = None
    """Longest time without a new step of any metric; None: 30 minutes."""
    max_attempts: int = 0
    """Attempts in total; another one follows a loss, never an error of the code; 0: 3."""


@dataclass(frozen=True)
class PackedJob:
    """What is submitted: the archive, the parameters as JSON, and the provenance."""

    job: TrainJob
    archive: SourceArchive | None
    """None: a built-in recipe."""
    params_json: str
    provenance: Mapping[str, str]


def pack_job(job: TrainJob) -> PackedJob:
    """Check a job and pack its source. Raises SourceError; the user's code does not run."""
    if not job.function:
        raise SourceError("function is empty; name one as file.py:function.")
    if job.workers < 1:
        raise SourceError(f"workers is {job.workers}; a job needs at least one.")
    if job.gpus_per_worker < 0 or (job.gpus_per_worker > 1 and job.gpus_per_worker % 1):
        raise SourceError(
            f"gpus_per_worker is {job.gpus_per_worker:g}; it is a whole number, or a fraction of one GPU."
        )
    text = params_json(job.params)
    if job.source is None:
        if job.requirements is not None:
            raise SourceError("requirements need a source: they are a file of it.")
        return PackedJob(job, None, text, {"seed": str(job.seed)})
    folder = Path(job.source)
    archive = pack(folder)
    for function in filter(None, (job.function, job.check, job.export)):
        check_function(folder, archive, function)
    if job.requirements is not None:
        check_requirements(folder, archive, _name(job.requirements))
    lock = None if job.lock is None else Path(job.lock)
    if lock is None and job.requirements is not None:
        lock = folder / job.requirements
    recorded = provenance(folder, lock) | {"source_sha256": archive.sha256, "seed": str(job.seed)}
    return PackedJob(job, archive, text, recorded)


def train_spec(packed: PackedJob, path: Callable[[str, str], str]) -> trainer_pb2.TrainSpec:
    """The specification of a packed job; `path` makes full names of (collection, short name)."""
    job = packed.job
    return trainer_pb2.TrainSpec(
        experiment=path("experiments", job.experiment),
        workers=job.workers,
        gpus_per_worker=int(job.gpus_per_worker),
        gpu_fraction=job.gpus_per_worker % 1,
        cpus_per_worker=job.cpus_per_worker,
        limits=limits_message(job.timeout, job.stall_timeout, job.max_attempts),
        code=trainer_pb2.CodeRecipe(
            function=job.function,
            source_sha256=packed.archive.sha256 if packed.archive else "",
            params_json=packed.params_json,
            training_sets={name: path("trainingSets", one) for name, one in job.data.items()},
            check=job.check,
            export=job.export,
            seed=job.seed,
            provenance=packed.provenance,
            environment=job.environment,
            memory_bytes_per_worker=job.memory_bytes_per_worker,
            accelerator_type=job.accelerator_type,
            requirements="" if job.requirements is None else _name(job.requirements),
        ),
    )


def _name(path: str | Path) -> str:
    """The name of a file in the archive."""
    return Path(path).as_posix()


def params_json(params: Mapping[str, Any]) -> str:
    """The parameters as JSON. Raises SourceError naming the parameter that is none."""
    for name, value in params.items():
        if not isinstance(name, str):
            raise SourceError(f"The parameter name {name!r} is no text.")
        try:
            same = json.loads(json.dumps(value, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise SourceError(f"The parameter {name!r} is {value!r}: {error}.") from error
        if same != (list(value) if isinstance(value, tuple) else value):
            raise SourceError(f"The parameter {name!r} is {value!r}, which JSON would change to {same!r}.")
    text = json.dumps(dict(params), sort_keys=True)
    if len(text.encode()) > MAX_PARAMS_BYTES:
        raise SourceError(
            f"The parameters have {len(text)} characters; at most {MAX_PARAMS_BYTES} are allowed."
        )
    return text
