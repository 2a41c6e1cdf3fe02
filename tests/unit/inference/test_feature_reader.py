"""Feature lookup of a batch: each request gets its own features or its own error."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from flywheel_common.errors import InvalidArgument, Unavailable
from flywheel_common.scoring.feature_block import FeatureBlock, FeatureColumn
from flywheel_inference.fallback.circuit_breaker import CircuitBreaker
from flywheel_inference.fallback.errors import FeaturesUnavailable
from flywheel_inference.releases.release import FeatureSetContract
from flywheel_inference.requests.request import RoutedRequest
from flywheel_inference.scoring.feature_reader import FeatureReader
from flywheel_protos.types.v1 import value_pb2
from tests.support.builders.inference import LOG_CONTRACT, log_request


class Lookup:
    """Returns each key as its feature. Refuses lookups with a key in `refused`; `down`: event times that
    fail."""

    def __init__(self, refused: set[str], down: set[int | None]) -> None:
        self._refused = refused
        self._down = down
        self.asked: list[list[str]] = []

    async def online(
        self,
        contract: FeatureSetContract,
        keys: Sequence[tuple[object, ...]],
        fields: Sequence[tuple[object, ...]],
        as_of_micros: int | None,
        timeout: float,
    ) -> FeatureBlock:
        await asyncio.sleep(0)
        names = [str(key[0]) for key in keys]
        self.asked.append(names)
        if as_of_micros in self._down:
            raise Unavailable("down")
        if not self._refused.isdisjoint(names):
            raise InvalidArgument("refused")
        numbers = np.array([float(name[1:]) for name in names])
        column = FeatureColumn("a__x", value_pb2.DATA_TYPE_FLOAT64, numbers, np.ones(len(names), np.bool_))
        return FeatureBlock("fs", (column,), np.ones((1, len(names)), np.uint8))


def requests_at(times: Sequence[int | None]) -> list[RoutedRequest]:
    requests = [log_request(number) for number in range(len(times))]
    for request, time in zip(requests, times, strict=True):
        request.as_of_micros = time
    return requests


@given(
    st.lists(st.sampled_from([None, 1, 2]), min_size=1, max_size=20),
    st.sets(st.integers(0, 19), max_size=4),
    st.sets(st.sampled_from([None, 1, 2]), max_size=2),
)
def test_each_request_gets_its_own_features_or_its_own_error(
    times: list[int | None], bad: set[int], down: set[int | None]
) -> None:
    lookup = Lookup({f"N{number}" for number in bad}, down)
    breaker = CircuitBreaker(threshold=1000)
    reader = FeatureReader(lookup, LOG_CONTRACT, breaker)
    found = asyncio.run(reader.read(requests_at(times), 1.0))
    for row, time in enumerate(times):
        if time in down:
            assert isinstance(found.errors[row], FeaturesUnavailable)
        elif row in bad:
            assert type(found.errors[row]) is InvalidArgument
        else:
            assert row not in found.errors
    answered = [row for row in range(len(times)) if row not in found.errors]
    assert found.rows.tolist() == answered
    values = found.block.columns[0].values.tolist() if found.block is not None else []
    assert values == [float(row) for row in answered]


def test_one_bad_request_costs_a_logarithmic_number_of_lookups() -> None:
    lookup = Lookup({"N77"}, set())
    found = asyncio.run(
        FeatureReader(lookup, LOG_CONTRACT, CircuitBreaker()).read(requests_at([None] * 256), 1)
    )
    assert list(found.errors) == [77]
    # The batch, and then two halves for each of log2(256) levels.
    assert len(lookup.asked) == 1 + 2 * 8


def test_without_time_nothing_is_asked_and_the_breaker_stays_closed() -> None:
    lookup, breaker = Lookup(set(), set()), CircuitBreaker(threshold=1)
    found = asyncio.run(FeatureReader(lookup, LOG_CONTRACT, breaker).read(requests_at([None] * 3), 0.0))
    assert {error.reason for error in found.errors.values()} == {"BUDGET_EXCEEDED"} and len(found.errors) == 3
    assert not lookup.asked and not breaker.is_open
