"""Feature lookup of one batch, with a circuit breaker."""

from __future__ import annotations

import asyncio
import time

import numpy as np

from flywheel_common.errors import FlywheelError, InvalidArgument
from flywheel_inference.fallback.circuit_breaker import CircuitBreaker
from flywheel_inference.fallback.errors import BudgetExceeded, FeaturesUnavailable
from flywheel_inference.models.feature_block import FeatureBlock, concatenate_blocks
from flywheel_inference.releases.release import FeatureSetContract
from flywheel_inference.requests.request import RoutedRequest
from flywheel_inference.scoring.ports import FeatureLookup


class FeatureReader:
    """Reads the features of one feature set."""

    def __init__(self, lookup: FeatureLookup, contract: FeatureSetContract, breaker: CircuitBreaker) -> None:
        self._lookup = lookup
        self._contract = contract
        self._breaker = breaker

    async def read(self, requests: list[RoutedRequest], budget: float) -> FeatureBlock:
        """The features of the requests, in order, within `budget` seconds. Raises CannotScore;
        InvalidArgument when the feature service refuses the content of a request."""
        if not self._breaker.allows(time.monotonic()):
            raise FeaturesUnavailable("the circuit breaker of the feature service is open")
        if budget <= 0:
            raise BudgetExceeded("no time is left for the feature lookup")
        try:
            block = await self._read_by_time(requests, budget)
        except InvalidArgument:
            self._breaker.succeeded()
            raise
        except FlywheelError as error:
            self._breaker.failed(time.monotonic())
            raise FeaturesUnavailable(error.message) from None
        self._breaker.succeeded()
        return block

    async def _read_by_time(self, requests: list[RoutedRequest], budget: float) -> FeatureBlock:
        """One lookup per event time. That is usually a single lookup, because most requests ask for now."""
        times: dict[int | None, list[int]] = {}
        for row, request in enumerate(requests):
            times.setdefault(request.as_of_micros, []).append(row)
        if len(times) == 1:
            (as_of,) = times
            return await self._online(requests, as_of, budget)
        async with asyncio.TaskGroup() as group:
            lookups = [
                group.create_task(self._attempt([requests[row] for row in rows], as_of, budget))
                for as_of, rows in times.items()
            ]
        results = [lookup.result() for lookup in lookups]
        for result in results:
            if isinstance(result, FlywheelError):
                raise result
        block = concatenate_blocks([result for result in results if isinstance(result, FeatureBlock)])
        return block.take(np.argsort(np.concatenate([np.array(rows) for rows in times.values()])))

    async def _attempt(
        self, requests: list[RoutedRequest], as_of: int | None, budget: float
    ) -> FeatureBlock | FlywheelError:
        # Returned instead of raised: the task group would cancel the other lookups and raise an
        # ExceptionGroup.
        try:
            return await self._online(requests, as_of, budget)
        except FlywheelError as error:
            return error

    async def _online(self, requests: list[RoutedRequest], as_of: int | None, budget: float) -> FeatureBlock:
        keys, fields = [r.keys for r in requests], [r.fields for r in requests]
        return await self._lookup.online(self._contract, keys, fields, as_of, budget)
