"""The specification of a tabular training job, a JSON object on S3 next to the job's outcome."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

LABEL = "label"
TIME = "event_timestamp"


@dataclass(frozen=True)
class Column:
    """One model input: its name `view__feature` and the name of its type (`FLOAT64`, `STRING`, …)."""

    name: str
    data_type: str


@dataclass(frozen=True)
class Hyperparameters:
    """Hyperparameters of the recipe, with defaults (TabularRecipe in the API)."""

    hidden_sizes: tuple[int, ...] = (64, 32)
    epochs: int = 10
    batch_size: int = 1024
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    dropout: float = 0.0
    seed: int = 0
    holdout_fraction: float = 0.2
    weight_column: str = ""
    """Extra column of the training set with the weight of each row; empty: all rows have the same weight."""

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """The inverse of `asdict` followed by a round trip through JSON."""
        return cls(**{**fields, "hidden_sizes": tuple(fields["hidden_sizes"])})


@dataclass(frozen=True)
class WarmStart:
    """Initial weights: address and digest of the file, and the model version that it belongs to."""

    version: str
    uri: str
    sha256: str


@dataclass(frozen=True)
class TabularSpec:
    """All settings of a job except credentials, which come from the environment."""

    job: str
    run: str
    training_set: str
    uri: str
    columns: tuple[Column, ...]
    output_uri: str
    """`s3://bucket/prefix` under which artifacts are stored by digest."""
    outcome_uri: str
    """`s3://bucket/key` of the outcome that rank 0 writes as its last act."""
    failure_uri: str = ""
    """`s3://bucket/key` of the outcome that the driver writes if the workers fail; empty: at
    `outcome_uri`."""
    log_uri: str = ""
    """`s3://bucket/prefix` below which each rank stores its log; empty: ranks store none."""
    attempt: int = 1
    trainer_address: str = ""
    """host:port for live metrics; empty: metrics are only written to the outcome."""
    workers: int = 1
    gpus_per_worker: int = 0
    cpus_per_worker: float = 1.0
    hyperparameters: Hyperparameters = field(default_factory=Hyperparameters)
    warm_start: WarmStart | None = None

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        raw: dict[str, Any] = json.loads(data)
        raw["columns"] = tuple(Column(**c) for c in raw["columns"])
        raw["hyperparameters"] = Hyperparameters.from_json(raw["hyperparameters"])
        raw["warm_start"] = WarmStart(**raw["warm_start"]) if raw["warm_start"] else None
        return cls(**raw)
