"""Feature lookup of one batch, with a circuit breaker. A bad request fails alone, not with its batch."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from flywheel_common.arrays import Array
from flywheel_common.errors import FlywheelError, InvalidArgument
from flywheel_common.scoring.feature_block import FeatureBlock, concatenate_blocks
from flywheel_common.tasks import TaskGroup
from flywheel_inference.fallback.circuit_breaker import CircuitBreaker
from flywheel_inference.fallback.errors import BudgetExceeded, FeaturesUnavailable
from flywheel_inference.releases.release import FeatureSetContract
from flywheel_inference.requests.request import RoutedRequest
from flywheel_inference.scoring.ports import FeatureLookup


@dataclass(frozen=True, slots=True)
class FeatureRows:
    """Features of a batch. `block` holds the requests with the indices `rows`, in that order; None: no
    request has features. `errors`: index of a request without features → why."""

    rows: Array
    block: FeatureBlock | None
    errors: Mapping[int, FlywheelError]


class FeatureReader:
    """Reads the features of one feature set."""

    def __init__(self, lookup: FeatureLookup, contract: FeatureSetContract, breaker: CircuitBreaker) -> None:
        self._lookup = lookup
        self._contract = contract
        self._breaker = breaker

    async def read(self, requests: list[RoutedRequest], budget: float) -> FeatureRows:
        """The features of the requests within `budget` seconds.

        One lookup per event time: usually one, because most requests ask for now. A lookup whose content is
        refused is bisected, both halves at once, until each bad request is alone. Errors of a request are
        InvalidArgument or CannotScore.
        """
        if not self._breaker.allows(time.monotonic()):
            error = FeaturesUnavailable("the circuit breaker of the feature service is open")
            return _joined([], dict.fromkeys(range(len(requests)), error))
        deadline = time.monotonic() + budget
        times: dict[int | None, list[int]] = {}
        for row, request in enumerate(requests):
            times.setdefault(request.as_of_micros, []).append(row)
        found: list[tuple[list[int], FeatureBlock]] = []
        errors: dict[int, FlywheelError] = {}
        if len(times) == 1:
            await self._look_up(requests, list(range(len(requests))), deadline, found, errors)
        else:
            async with TaskGroup() as group:
                for rows in times.values():
                    group.create_task(self._look_up(requests, rows, deadline, found, errors))
        return _joined(found, errors)

    async def _look_up(
        self,
        requests: list[RoutedRequest],
        rows: list[int],
        deadline: float,
        found: list[tuple[list[int], FeatureBlock]],
        errors: dict[int, FlywheelError],
    ) -> None:
        """Looks up requests of one event time; adds to `found` and `errors`."""
        budget = deadline - time.monotonic()
        if budget <= 0:
            errors.update(dict.fromkeys(rows, BudgetExceeded("no time is left for the feature lookup")))
            return
        asked = [requests[row] for row in rows]
        try:
            block = await self._lookup.online(
                self._contract,
                [request.keys for request in asked],
                [request.fields for request in asked],
                asked[0].as_of_micros,
                budget,
            )
        except InvalidArgument as error:
            self._breaker.succeeded()
            if len(rows) == 1:
                errors[rows[0]] = error
                return
            middle = len(rows) // 2
            async with TaskGroup() as group:
                for half in (rows[:middle], rows[middle:]):
                    group.create_task(self._look_up(requests, half, deadline, found, errors))
        except FlywheelError as error:
            self._breaker.failed(time.monotonic())
            errors.update(dict.fromkeys(rows, FeaturesUnavailable(error.message)))
        else:
            self._breaker.succeeded()
            found.append((rows, block))


def _joined(found: list[tuple[list[int], FeatureBlock]], errors: Mapping[int, FlywheelError]) -> FeatureRows:
    if not found:
        return FeatureRows(np.zeros(0, np.intp), None, errors)
    if len(found) == 1:
        ((places, block),) = found
        return FeatureRows(np.array(places, np.intp), block, errors)
    rows = np.concatenate([np.array(places, np.intp) for places, _ in found])
    order = np.argsort(rows)
    block = concatenate_blocks([block for _, block in found]).take(order)
    return FeatureRows(rows[order], block, errors)
