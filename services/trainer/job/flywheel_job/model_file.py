"""A model that a job reads: the address of its graph, what its tensors mean, calibration and threshold.

The trainer fixes it when a job is submitted, so that all attempts read the same model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from flywheel_job.signature import Input

BINARY, MULTICLASS, REGRESSION = "BINARY", "MULTICLASS", "REGRESSION"
KINDS = (BINARY, MULTICLASS, REGRESSION)
"""Kinds of output that can be compared with labels."""


@dataclass(frozen=True)
class InputTensor:
    """One input tensor of the graph, and the features in it, side by side."""

    name: str
    data_type: str
    """BOOL, INT64, FLOAT32, FLOAT64 or STRING."""
    inputs: tuple[Input, ...]
    flat: bool = False
    """The tensor is [rows] and has one input."""


@dataclass(frozen=True)
class ModelFile:
    """An ONNX model on this service's object store."""

    name: str
    """Resource name of the model version, or of the run whose artifact it is."""
    uri: str
    sha256: str
    tensors: tuple[InputTensor, ...]
    output: str
    """Name of the output tensor."""
    kind: str
    classes: tuple[str, ...] = ()
    """Names of the classes of a MULTICLASS output, in the order of its columns."""
    calibration: Mapping[str, Any] = field(default_factory=dict)
    """JSON form of `evaluation.calibration`; empty: outputs are used as they are."""
    threshold: float | None = None
    """Threshold with which a BINARY output is used."""

    @property
    def inputs(self) -> tuple[Input, ...]:
        return tuple(one for tensor in self.tensors for one in tensor.inputs)

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return found

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        tensors = tuple(
            InputTensor(
                one["name"],
                one["data_type"],
                tuple(Input(i["name"], i["data_type"], tuple(i["vocabulary"])) for i in one["inputs"]),
                one["flat"],
            )
            for one in fields["tensors"]
        )
        return cls(**{**fields, "tensors": tensors, "classes": tuple(fields["classes"])})
