"""The model servers of this gateway: each call goes to a healthy one that has the model."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from flywheel_common.arrays import Array
from flywheel_common.errors import FlywheelError
from flywheel_common.scoring.input_tensors import Tensors
from flywheel_common.signature import OutputSpec
from flywheel_inference.models.errors import ModelNotLoaded, ModelServerDown
from flywheel_inference.models.replica import Replica


class Replicas:
    """`models.ModelServer` over several. A call that a replica does not answer, because it is gone or has
    lost the model, goes to the next one within the time limit of the call."""

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self.all = tuple(replicas)

    @property
    def up(self) -> bool:
        """Whether at least one replica answers."""
        return any(replica.up for replica in self.all)

    @property
    def up_count(self) -> int:
        return sum(replica.up for replica in self.all)

    def has(self, name: str) -> bool:
        """Whether at least one replica has the model."""
        return any(name in replica.models for replica in self.all)

    def lack(self, name: str) -> list[Replica]:
        """The replicas that answer and do not have the model."""
        return [replica for replica in self.all if replica.up and name not in replica.models]

    async def check(self) -> None:
        """Updates what is known about all replicas, at once, so that one that hangs delays no other."""
        await asyncio.gather(*(replica.check() for replica in self.all))

    async def infer(self, name: str, tensors: Tensors, output: OutputSpec, timeout: float) -> Array:
        if len(self.all) == 1 and name in self.all[0].models:
            return await self.all[0].infer(name, tensors, output, timeout)
        until = time.monotonic() + timeout
        tried: set[Replica] = set()
        failure: FlywheelError = ModelNotLoaded(f"No model server has the model {name}.")
        while (replica := self._next(name, tried)) is not None:
            left = until - time.monotonic()
            if tried and left <= 0:
                break
            tried.add(replica)
            try:
                return await replica.infer(name, tensors, output, left)
            except (ModelServerDown, ModelNotLoaded) as error:
                failure = error
        if isinstance(failure, ModelNotLoaded) and self.has(name):
            # Not lost: a replica that did not answer may still have it.
            failure = ModelServerDown(f"The model servers with {name} do not answer.")
        raise failure

    def _next(self, name: str, tried: set[Replica]) -> Replica | None:
        """The replica with the fewest calls in flight. When no healthy one is left, one that seems down is
        tried: a call fails fast, and its health check may be late."""
        left = [replica for replica in self.all if name in replica.models and replica not in tried]
        return min(left, key=lambda replica: (not replica.up, replica.in_flight), default=None)
