"""Ports for the storage of outcomes and for the outputs of the models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from flywheel_common.signature import OutputSpec
from flywheel_inference.outcomes.row import OutcomeRow


class OutcomeSink(Protocol):
    """Stores outcomes durably."""

    async def record(self, model: str, rows: Sequence[OutcomeRow]) -> None:
        """Returns when all rows are stored on every in-sync replica, rows of one prediction in their order.

        Raises Unavailable KAFKA_UNAVAILABLE, InvalidArgument EVENT_TOO_LARGE; some rows may be stored then.
        Equal rows are stored as often as they are sent; consumers dedupe by outcome id.
        """
        ...


class ModelOutputs(Protocol):
    """The outputs of the models that this gateway knows."""

    def outputs(self, model: str) -> Sequence[OutputSpec]:
        """Outputs of the model's desired releases; empty when none can be read. Raises NotFound
        UNKNOWN_MODEL, Unavailable NO_DESIRED_STATE, InvalidArgument INVALID_NAME."""
        ...
