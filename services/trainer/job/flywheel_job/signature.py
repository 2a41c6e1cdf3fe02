"""The input of a model: the columns of its tensor, and how a value of each becomes a number."""

from __future__ import annotations

from dataclasses import dataclass

CATEGORICAL = frozenset({"STRING"})


@dataclass(frozen=True)
class Input:
    """One model input in tensor order; a categorical one is encoded as its index in the vocabulary."""

    name: str
    data_type: str
    vocabulary: tuple[str, ...] = ()

    @property
    def categorical(self) -> bool:
        return self.data_type in CATEGORICAL


@dataclass(frozen=True)
class Signature:
    """INPUT `[rows, inputs]` (float32; null is NaN, an unknown category -1) → SCORE `[rows, outputs]`."""

    inputs: tuple[Input, ...]
    outputs: int = 1
    """1: a probability or a value; above: the probabilities of as many classes."""
