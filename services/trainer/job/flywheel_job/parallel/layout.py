"""Which ranks share a replica of the model, and which part of it each one has."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from flywheel_job.errors import UnsupportedStrategy


class Strategy(StrEnum):
    """How the ranks divide model and data."""

    DDP = "ddp"
    """Every rank has the whole model and a part of each batch; gradients are averaged."""
    FSDP = "fsdp"
    """As DDP, but parameters, gradients and optimizer state are divided among the ranks."""
    TENSOR = "tensor"
    """The matrices of each layer are divided among the ranks; all ranks have the same batch."""
    PIPELINE = "pipeline"
    """Each rank has some of the layers; batches pass through in micro-batches (1F1B)."""
    DDP_PIPELINE = "ddp+pipeline"
    """Several pipelines of `stages` ranks, each with a part of every batch."""


@dataclass(frozen=True)
class Layout:
    """The place of one rank."""

    strategy: Strategy
    replica: int
    """Number of this rank's replica of the model; ranks of one replica get the same rows."""
    replicas: int
    part: int
    """Number of this rank's part of the model."""
    parts: int

    @classmethod
    def of(cls, strategy: str, rank: int, world: int, stages: int = 0) -> Layout:
        """The place of a rank; `stages` (of a pipeline) is the number of ranks if it is 0.

        Ranks of one pipeline have successive numbers. Raises UnsupportedStrategy.
        """
        try:
            chosen = Strategy(strategy)
        except ValueError:
            raise UnsupportedStrategy(
                f"There is no strategy {strategy!r}; there are: {', '.join(Strategy)}."
            ) from None
        if chosen in {Strategy.DDP, Strategy.FSDP}:
            return cls(chosen, rank, world, 0, 1)
        if chosen is Strategy.DDP_PIPELINE:
            parts = stages or 2
            if world % parts or parts < 1:
                raise UnsupportedStrategy(f"{world} workers make no pipelines of {parts} stages.")
        else:
            parts = stages or world
            if parts != world:
                raise UnsupportedStrategy(
                    f"{chosen} uses all {world} workers for one replica, but {parts} stages are wanted."
                )
        return cls(chosen, rank // parts, world // parts, rank % parts, parts)

    def layers(self, count: int) -> range:
        """This stage's layers of `count`; earlier stages have one more if they cannot be divided equally.

        Raises UnsupportedStrategy if a stage would have none.
        """
        if self.strategy not in {Strategy.PIPELINE, Strategy.DDP_PIPELINE}:
            return range(count)
        if count < self.parts:
            raise UnsupportedStrategy(f"{count} layers cannot be divided into {self.parts} stages.")
        size, more = divmod(count, self.parts)
        begin = self.part * size + min(self.part, more)
        return range(begin, begin + size + (self.part < more))
