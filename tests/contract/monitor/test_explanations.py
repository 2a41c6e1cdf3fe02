"""Explanations of drift, over memory and PostgreSQL, as the API and the command give them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from typer.testing import CliRunner

from flywheel.cli.main import app
from flywheel_monitor.windows.bins import ColumnReference
from flywheel_protos.monitor.v1 import explanation_pb2 as pb
from tests.contract.monitor.test_api import at, refused
from tests.support.builders.monitor import MINUTE_US, REFERENCE, START_US, predictions, version_name
from tests.support.servers.monitor import LocalMonitor, listening, served

NOISE = ColumnReference("v__noise", True, (50, 50), edges=(0.0,), stddev=1.0, minimum=-3.0, maximum=3.0)
END_US = START_US + MINUTE_US


@pytest.fixture
async def drifted(monitor: LocalMonitor) -> LocalMonitor:
    """50 rows of JFK and 30 without a segment are above 0, 20 of LGA below; another segment comes later."""
    reference = replace(
        REFERENCE,
        columns=(*REFERENCE.columns, NOISE),
        metrics={"auc": 0.9, "importance{feature=v__x}": 0.3, "importance{feature=v__noise}": 0.1},
    )
    monitor.references.known[version_name()] = reference
    await monitor.predicted(
        predictions(
            [str(i) for i in range(100)],
            values=[1.0] * 50 + [-1.0] * 20 + [1.0] * 30,
            segments=["JFK"] * 50 + ["LGA"] * 20 + [""] * 30,
        ),
        predictions(["later"], times=[END_US], segments=["EWR"]),
    )
    return monitor


@pytest.fixture
async def stub(drifted: LocalMonitor) -> AsyncIterator[Any]:
    async with served(drifted.store) as found:
        yield found


def request_of(name: str, segment: str = "") -> pb.ExplainDriftRequest:
    request = pb.ExplainDriftRequest(name=name, segment=segment)
    return at(at(request, "start_time", START_US), "end_time", END_US)  # type: ignore[no-any-return]


async def test_features_bins_and_segments_are_explained(stub: Any) -> None:
    found = await stub.ExplainDrift(request_of(version_name()))
    assert (version_name(), 100, True) == (found.model_version, found.predictions, found.has_importance)
    assert ["v__x", "v__noise"] == [one.feature for one in found.features]
    x, noise = found.features
    assert (0.75, 0.25) == pytest.approx((x.importance, noise.importance), abs=1e-12)
    above, below = 80.5 / 101, 20.5 / 101
    terms = (above - 0.5) * math.log(above / 0.5), (below - 0.5) * math.log(below / 0.5)
    psi = sum(terms)
    corrected = psi - 2 / 100
    assert (psi, corrected, 0.75 * corrected) == pytest.approx((x.psi, x.drift, x.impact), abs=1e-12)
    assert [(False, 0.0, 0.5, 0.2), (True, 0.0, 0.5, 0.8)] == [
        (
            b.HasField("above"),
            b.above if b.HasField("above") else b.up_to,
            b.reference_share,
            b.observed_share,
        )
        for b in x.bins
    ]
    parts = {}
    for name, weight, up, down in (("JFK", 0.5, 50, 0), ("LGA", 0.2, 0, 20), ("", 0.3, 30, 0)):
        whole = 100 * weight + weight
        own = (up + 0.5 * weight) / whole, (down + 0.5 * weight) / whole
        parts[name] = weight * (
            (own[0] - 0.5) * math.log(above / 0.5) + (own[1] - 0.5) * math.log(below / 0.5)
        )
    assert [("JFK", 0.5), ("", 0.3), ("LGA", 0.2)] == [(s.segment, s.row_share) for s in x.segments]
    assert [parts[s.segment] for s in x.segments] == pytest.approx(
        [s.psi_part for s in x.segments], abs=1e-12
    )
    assert x.psi == pytest.approx(sum(s.psi_part for s in x.segments), abs=1e-12)
    # No batch logged it.
    assert (1.0, 0.0, 0.0, 0, 0) == (
        noise.null_rate,
        noise.drift,
        noise.psi,
        len(noise.bins),
        len(noise.segments),
    )


async def test_one_segment_is_explained_by_itself(stub: Any) -> None:
    found = await stub.ExplainDrift(request_of(version_name(), "LGA"))
    assert 20 == found.predictions
    shares = {b.HasField("above"): b.observed_share for b in found.features[0].bins}
    assert {False: 1.0, True: 0.0} == shares
    assert [] == list(found.features[0].segments)


async def test_a_version_without_importances_says_so(monitor: LocalMonitor) -> None:
    await monitor.predicted(predictions(["a"], version=2, values=[1.0]))
    async with served(monitor.store) as stub:
        found = await stub.ExplainDrift(request_of(version_name(2)))
    assert (False, [1.0]) == (found.has_importance, [one.importance for one in found.features])


async def test_what_cannot_be_explained_is_refused(drifted: LocalMonitor, stub: Any) -> None:
    assert "NOT_FOUND NO_PREDICTIONS" == await refused(
        stub.ExplainDrift(request_of(version_name(), "nowhere"))
    )
    assert "NOT_FOUND NO_PREDICTIONS" == await refused(
        stub.ExplainDrift(pb.ExplainDriftRequest(name=version_name()))
    )
    await drifted.predicted(predictions(["b"], version=9))
    assert "NOT_FOUND NO_REFERENCE" == await refused(stub.ExplainDrift(request_of(version_name(9))))


async def test_the_command_prints_the_explanation(drifted: LocalMonitor) -> None:
    async with listening(drifted.store) as address:
        arguments = ["monitor", "explain", "late/versions/1"]
        # The range of the fixture's rows, in UTC.
        for option, micros in (("--start", START_US), ("--end", END_US)):
            arguments += [option, _text(micros)]
        done = await asyncio.to_thread(
            CliRunner().invoke,
            app,
            ["--project", "p", *arguments],
            env={"FLYWHEEL_MONITOR_ADDRESS": address},
        )
    assert 0 == done.exit_code, done.output
    for expected in ("v__x", "> 0 50.0% → 80.0%", "JFK: 50.0% of the rows", "other rows: 30.0%", "missing"):
        assert expected in done.output
    assert "all count alike" not in done.output


def _text(micros: int) -> str:
    request = at(pb.ExplainDriftRequest(), "start_time", micros)
    return f"{request.start_time.ToDatetime():%Y-%m-%dT%H:%M:%S}"
