"""The launch specification of a job: one JSON object, written by the trainer, read by the job's processes.

This and the outcome (`outcome.py`) are the whole interface between the trainer service and its jobs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

LABEL = "label"
TIME = "event_timestamp"
"""Columns of every training set: the label, and the time at which the features were read."""


WORKER_PYTHON_VARIABLE = "FLYWHEEL_JOB_WORKER_PYTHON"
"""Variable of a driver with the command that is the Python of its workers; unset: that of the cluster."""
REQUIREMENTS_VARIABLE = "FLYWHEEL_JOB_REQUIREMENTS"
"""Variable with the SHA-256 (hex) of the requirements of the job's own environment; unset: it has none."""


@dataclass(frozen=True)
class Column:
    """A column of a data set: its name (`view__feature` of a feature) and type (`FLOAT64`, `STRING`, …)."""

    name: str
    data_type: str


@dataclass(frozen=True)
class DataSet:
    """Parquet files under one prefix, such as a training set."""

    uri: str
    name: str = ""
    """Resource name, such as `projects/{project}/trainingSets/{training_set}`."""
    columns: tuple[Column, ...] = ()
    """The features, in the order of the model's inputs."""
    content_hash: str = ""

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        return cls(**{**fields, "columns": tuple(Column(**c) for c in fields.get("columns", ()))})


@dataclass(frozen=True)
class Source:
    """Address and digest of a source archive."""

    uri: str
    sha256: str


@dataclass(frozen=True)
class Resources:
    """What every worker needs."""

    cpus: float = 1.0
    gpus: float = 0.0
    """A fraction below 1 shares a GPU."""
    memory_bytes: int = 0
    """0: not reserved."""
    accelerator_type: str = ""
    """Ray's name of a GPU model, such as `H200`; empty: any."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables of every worker, such as `NCCL_SOCKET_IFNAME`."""


@dataclass(frozen=True)
class Segment:
    """Parameters up to a step; the segment ends with the first checkpoint at or after it."""

    until_step: int
    params: Mapping[str, Any] = field(default_factory=dict)
    """Added to the parameters of the job."""


@dataclass(frozen=True)
class TrialGate:
    """Where a trial of a TUNE job asks, at each value of a metric, whether it goes on."""

    actor: str
    """Name of the Ray actor."""
    trial: int
    metric: str


@dataclass(frozen=True)
class LaunchSpec:
    """All settings of a job except the credentials of the object store, which come from the environment."""

    job: str
    run: str
    function: str
    """`train.py:train` in the source archive, or `package.module:function` of an installed package."""
    output_uri: str
    """`s3://bucket/prefix` under which artifacts are stored by digest."""
    outcome_uri: str
    """`s3://bucket/key` of the outcome of a success."""
    checkpoint_uri: str
    """`s3://bucket/prefix` of the job's checkpoints."""
    failure_uri: str = ""
    """`s3://bucket/key` of the outcome of a failure; empty: at `outcome_uri`."""
    log_uri: str = ""
    """`s3://bucket/prefix` below which each rank stores its log; empty: ranks store none."""
    attempt: int = 1
    source: Source | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, DataSet] = field(default_factory=dict)
    models: Mapping[str, Any] = field(default_factory=dict)
    """Models that the job reads, by name: the JSON form of `model_file.ModelFile`."""
    check: str = ""
    """Function that the driver calls before the workers start; empty: none."""
    export: str = ""
    """Function that the driver calls after the workers have ended and freed their GPUs; empty: none."""
    workers: int = 1
    resources: Resources = field(default_factory=Resources)
    seed: int = 0
    trainer_address: str = ""
    """host:port for live metrics; empty: metrics are only written to the outcome."""
    provenance: Mapping[str, str] = field(default_factory=dict)
    """What the submitter recorded: commit, digest of uncommitted changes, digest of the requirements lock."""

    schedule: tuple[Segment, ...] = ()
    """The function is called once for each segment; empty: one call without an end."""
    initial_checkpoint_uri: str = ""
    """`s3://bucket/prefix` of the checkpoints from which a job without checkpoints of its own starts."""
    gate: TrialGate | None = None
    requirements: str = ""
    """Requirements file in the source archive; empty: the packages of the cluster."""

    @property
    def result_uri(self) -> str:
        """Object in which rank 0 of this attempt leaves its result for the driver."""
        return f"{self.outcome_uri}.rank-0.attempt-{self.attempt}"

    @property
    def inputs(self) -> tuple[str, ...]:
        """Addresses of what the job reads, except what its params name."""
        found = [one.uri for one in self.data.values()] + [one["uri"] for one in self.models.values()]
        found += [self.source.uri] if self.source else []
        return tuple(uri for uri in (*found, self.initial_checkpoint_uri) if uri)

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        raw: dict[str, Any] = json.loads(data)
        raw["source"] = Source(**raw["source"]) if raw.get("source") else None
        raw["data"] = {name: DataSet.from_json(one) for name, one in raw.get("data", {}).items()}
        raw["resources"] = Resources(**raw.get("resources", {}))
        raw["schedule"] = tuple(Segment(**one) for one in raw.get("schedule", ()))
        raw["gate"] = TrialGate(**raw["gate"]) if raw.get("gate") else None
        return cls(**raw)
