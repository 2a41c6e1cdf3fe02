"""Reports on windows of any width, and the page that shows them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration
from typer.testing import CliRunner

from flywheel.cli.main import app
from flywheel_monitor.evaluation.report import Report
from flywheel_monitor.evaluation.window_series import find_series
from flywheel_protos.monitor.v1 import monitor_pb2
from tests.support.builders.monitor import (
    HOUR_US,
    MINUTE_US,
    PANE_US,
    START_US,
    outcomes,
    predictions,
    version_name,
)
from tests.support.servers.monitor import LocalMonitor, listening, memory_monitor, served

SECOND_US = 1_000_000


async def series(
    monitor: LocalMonitor, seconds: int, size: int = 100, token: str = "", **fields: Any
) -> tuple[list[Report], str]:
    given = {"start_us": None, "end_us": None, "segment": ""} | fields
    page = await find_series(
        monitor.store, version_name(), seconds * SECOND_US, pane_us=PANE_US, size=size, token=token, **given
    )
    return list(page.items), page.next_page_token


async def traffic(monitor: LocalMonitor) -> np.ndarray:
    """300 predictions over 50 minutes, 100 a day later, and 100 a year later; their event times."""
    rng = np.random.default_rng(3)
    first = rng.integers(0, 50 * MINUTE_US, 300)
    times = START_US + np.concatenate([first, 24 * HOUR_US + first[:100], 365 * 24 * HOUR_US + first[:100]])
    ids = [str(i) for i in range(len(times))]
    segments = ["even" if i % 2 == 0 else "odd" for i in range(len(times))]
    await monitor.predicted(
        predictions(ids, times=times, values=rng.normal(size=len(times)), segments=segments)
    )
    await monitor.labelled(outcomes(ids[:50], [1.0] * 50))
    return times


@pytest.mark.parametrize("seconds", [1, 45, 60, 90, 600, 3_600, 5_000, 86_400, 10**9])
async def test_each_prediction_is_in_one_window_of_any_width(monitor: LocalMonitor, seconds: int) -> None:
    times = await traffic(monitor)
    found, token = await series(monitor, seconds)
    while token:
        more, token = await series(monitor, seconds, token=token)
        found += more
    # A pane of a minute counts in the window in which it begins.
    windows, counts = np.unique(times // PANE_US * PANE_US // (seconds * SECOND_US), return_counts=True)
    assert counts[::-1].tolist() == [r.predictions for r in found]
    begins = -(-windows * seconds * SECOND_US // PANE_US) * PANE_US
    assert begins[::-1].tolist() == [r.span.start_us for r in found]
    assert 50 == sum(r.quality.labelled for r in found)
    same = await monitor.report(version_name(), found[0].span.start_us, found[0].span.end_us)
    assert same == found[0]


async def test_windows_are_read_of_a_range_and_a_segment(monitor: LocalMonitor) -> None:
    times = await traffic(monitor)
    even = times[::2]
    start, end = START_US + 11 * MINUTE_US, START_US + 40 * MINUTE_US
    found, token = await series(monitor, 600, start_us=start, end_us=end, segment="even")
    assert "" == token
    begins = [START_US + m * MINUTE_US for m in (30, 20)]
    assert begins == [r.span.start_us for r in found], "the window at 10 minutes begins before the range"
    expected = [int(np.sum((even >= at) & (even < at + 600 * SECOND_US))) for at in begins]
    assert expected == [r.predictions for r in found]
    assert ([], "") == await series(monitor, 600, segment="none")


async def test_pages_of_windows_follow_one_another(monitor: LocalMonitor) -> None:
    await traffic(monitor)
    every, _ = await series(monitor, 60)
    found, token = await series(monitor, 60, size=7)
    assert every[:7] == found and token
    assert every[7:14] == (await series(monitor, 60, size=7, token=token))[0]


async def test_the_api_lists_windows_of_a_width(monitor: LocalMonitor) -> None:
    await traffic(monitor)
    async with served(monitor.store) as stub:

        async def refused(**fields: Any) -> str:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.ListDriftReports(
                    monitor_pb2.ListDriftReportsRequest(name=version_name(), **fields)
                )
            assert grpc.StatusCode.INVALID_ARGUMENT == caught.value.code()
            return caught.value.details() or ""

        request = monitor_pb2.ListDriftReportsRequest(name=version_name(), window=Duration(seconds=7_200))
        reports = (await stub.ListDriftReports(request)).reports
        assert [100, 100, 300] == [r.predictions for r in reports]
        for window in (Duration(), Duration(nanos=500_000_000), Duration(seconds=-5)):
            assert "window must be at least 1 s" in await refused(window=window)
        assert "need a window" in await refused(segment="even")


async def test_the_page_shows_windows_of_the_width_that_was_asked_for(tmp_path: Path) -> None:
    monitor, page = memory_monitor(), tmp_path / "report.html"
    await traffic(monitor)
    command = ["monitor", "report", version_name(), "--window", "3600", "--out", str(page)]
    async with listening(monitor.store) as address:
        environment = {"FLYWHEEL_MONITOR_ADDRESS": address, "FLYWHEEL_PROJECT": "p"}
        done = await asyncio.to_thread(CliRunner().invoke, app, command, env=environment)
    assert 0 == done.exit_code, done.output
    html = page.read_text(encoding="utf-8")
    assert f"{version_name()}: 2014-04-01 00:00:00 to 2014-04-01 01:00:00 UTC" in html
    titles = [f"2013-04-0{day} 00:00:00: {rows}</title>" for day, rows in ((1, 300), (2, 100))]
    assert all(title in html for title in (*titles, "2014-04-01 00:00:00: 100</title>"))
