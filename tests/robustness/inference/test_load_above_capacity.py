"""Predict calls at multiples of the capacity that is measured in the same run; the figures are printed.

Tested is that the gateway lives, refuses, keeps its memory and answers again at once. How much it still
answers is printed only: `make bench SUITE=inference` has the targets, which one process misses (ADR 0076).
"""

from __future__ import annotations

import os

import pytest

from tests.robustness.inference.conftest import Platform
from tests.support.overload import OK, capacity, load

SECONDS = 4.0

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="the gateway and the client need a core each"),
]


async def test_a_gateway_above_its_capacity_refuses_early_and_recovers(platform: Platform) -> None:
    gateway = await platform.gateway()
    highest = await capacity(gateway, 2.0)
    print(f"capacity {highest:.0f}/s")
    found = {}
    for times in (1.5, 2.0, 4.0):
        found[times] = await load(gateway, "open", times * highest, SECONDS)
        after = await load(gateway, "open", 50.0, 2.0)
        print(f"{times} x: {found[times]}, goodput {found[times].good / highest:.2f}; after it: {after}")
        assert gateway.process.running
        # Answers are good again at once; the first of them waited for the last of the load.
        assert after.codes.keys() == {OK}
    assert all(one.good > 0 for one in found.values())
    assert found[2.0].refused > 0
    assert found[4.0].memory_bytes - found[1.5].memory_bytes < 256 * 1024 * 1024
