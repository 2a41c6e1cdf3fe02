"""The age of labels: how long after their predictions the outcomes happened."""

from __future__ import annotations

import numpy as np
import pytest

from flywheel_protos.monitor.v1 import monitor_pb2
from tests.support.builders.monitor import (
    HOUR_US,
    START_US,
    outcomes,
    predictions,
    scored_labels,
    version_name,
)
from tests.support.servers.monitor import LocalMonitor, served


async def serve(monitor: LocalMonitor, seconds: np.ndarray) -> list[str]:
    """Predictions of one hour, whose outcomes happen these seconds later; half of the labels arrive first."""
    n = len(seconds)
    ids, scores, labels = scored_labels(n)
    times = START_US + np.arange(n) * (HOUR_US // n)
    known = times + np.rint(seconds * 1e6).astype(np.int64)
    half = n // 2
    await monitor.labelled(outcomes(ids[:half], labels[:half], times=known[:half]))
    await monitor.predicted(predictions(ids, scores, times=times))
    await monitor.labelled(outcomes(ids[half:], labels[half:], times=known[half:]))
    return ids


async def figures(monitor: LocalMonitor) -> tuple[float | None, float | None]:
    found = (await monitor.performance()).quality
    return found.label_delay_p50_seconds, found.label_delay_p90_seconds


def within_a_bin(expected: float, found: float | None) -> bool:
    return found is not None and expected <= found <= 1.1 * expected


async def test_the_delays_are_quantiles_of_the_times_between(monitor: LocalMonitor) -> None:
    seconds = np.random.default_rng(1).lognormal(8, 2, 301).clip(2)
    await serve(monitor, seconds)
    for q, found in zip((0.5, 0.9), await figures(monitor), strict=True):
        assert within_a_bin(float(np.quantile(seconds, q, method="inverted_cdf")), found)


async def test_a_corrected_label_counts_with_the_time_of_its_correction(monitor: LocalMonitor) -> None:
    ids = await serve(monitor, np.full(20, 60.0))
    assert all(within_a_bin(60.0, found) for found in await figures(monitor))
    late = [START_US + 100 * HOUR_US] * 11
    await monitor.labelled(
        outcomes(ids[:11], [1.0] * 11, times=late, outcome_ids=[f"n{i}" for i in ids[:11]])
    )
    # 9 of 20 are as before, 11 are between 99 and 100 hours old.
    found = await figures(monitor)
    assert all(within_a_bin(99.7 * 3600, one) or within_a_bin(100 * 3600, one) for one in found)
    assert 20 == (await monitor.performance()).quality.labelled


async def test_outcomes_before_their_prediction_and_very_late_ones_are_counted(monitor: LocalMonitor) -> None:
    await serve(monitor, np.array([-3600.0] * 8 + [0.5, 10 * 365 * 86400.0]))
    assert (1.0, 1.0) == await figures(monitor)
    await serve(monitor, np.array([-3600.0]))
    assert 10 == (await monitor.performance()).quality.labelled


async def test_the_api_has_the_delays_only_with_labels(edge: LocalMonitor) -> None:
    request = monitor_pb2.GetPerformanceRequest(model_version=version_name())
    async with served(edge.store) as stub:
        await edge.predicted(predictions(["a"]))
        found = (await stub.GetPerformance(request)).performance
        assert not found.HasField("label_delay_p50_seconds")
        await edge.labelled(outcomes(["a"], [1.0]))
        found = (await stub.GetPerformance(request)).performance
    assert found.label_delay_p50_seconds == found.label_delay_p90_seconds
    assert found.label_delay_p50_seconds == pytest.approx(3600, rel=0.1)
