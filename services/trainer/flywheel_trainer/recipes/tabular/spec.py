"""What a TRAIN job is told: a JSON object on S3 beside which the job puts its outcome."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

LABEL = "label"
TIME = "event_timestamp"


@dataclass(frozen=True)
class Column:
    """One model input: `view__feature` and its type's name (`FLOAT64`, `STRING`, …)."""

    name: str
    data_type: str


@dataclass(frozen=True)
class Hyperparameters:
    """The recipe's settings with defaults filled in (see TabularRecipe in the API)."""

    hidden_sizes: tuple[int, ...] = (64, 32)
    epochs: int = 10
    batch_size: int = 1024
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    dropout: float = 0.0
    seed: int = 0
    holdout_fraction: float = 0.2


@dataclass(frozen=True)
class WarmStart:
    """Weights to begin with: the file's place and digest, and the version it belongs to."""

    version: str
    uri: str
    sha256: str


@dataclass(frozen=True)
class TabularSpec:
    """Everything the job needs; credentials come from the environment instead."""

    job: str
    run: str
    training_set: str
    uri: str
    columns: tuple[Column, ...]
    output_uri: str
    """`s3://bucket/prefix` under which artifacts are put by digest."""
    outcome_uri: str
    """`s3://bucket/key` of the completion marker."""
    trainer_address: str = ""
    """host:port for live metrics; empty: none are sent until the end."""
    workers: int = 1
    gpus_per_worker: int = 0
    cpus_per_worker: float = 1.0
    hyperparameters: Hyperparameters = field(default_factory=Hyperparameters)
    warm_start: WarmStart | None = None

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True).encode()

    @classmethod
    def from_json(cls, data: bytes) -> TabularSpec:
        raw: dict[str, Any] = json.loads(data)
        raw["columns"] = tuple(Column(**c) for c in raw["columns"])
        raw["hyperparameters"] = Hyperparameters(
            **{**raw["hyperparameters"], "hidden_sizes": tuple(raw["hyperparameters"]["hidden_sizes"])}
        )
        raw["warm_start"] = WarmStart(**raw["warm_start"]) if raw["warm_start"] else None
        return cls(**raw)
