"""The p99 of healthy callers beside hostile ones, and beside as many valid calls, against their p99 alone.

Hostile calls: deadlines of 6 ms, ragged vectors, fields of 15 MiB, batches with 1 % bad rows. In the
second row the large fields are as large as the gateway accepts. The third row is what 200 more calls/s cost
on this machine when they are valid.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from bench import measure
from bench.inference.single_gateway import single_gateway
from flywheel_local.layout import LOCAL
from tests.support.hostile_load import (
    HEALTHY,
    HOSTILE,
    LARGE_BYTES,
    LARGEST_ACCEPTED,
    OtherCaller,
    compare,
    other_channel,
)
from tests.support.peers.inference import RegistryServicer
from tests.support.prediction_load import outcomes
from tests.support.servers.inference_processes import W

ROUNDS = 7
NAME = f"p99 of {HEALTHY:.0f} calls/s beside {HOSTILE:.0f} hostile ones"
ACCEPTED = f"{NAME}, fields of 4 MiB"
VALID = f"p99 of {HEALTHY:.0f} calls/s beside {HOSTILE:.0f} valid ones"


def run(only: str) -> Iterable[measure.Row]:
    if not any(only in name for name in (NAME, ACCEPTED, VALID)):
        return
    LOCAL.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="hostile-", dir=LOCAL))
    try:
        pairs = asyncio.run(_p99s(folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    yield measure.compared(NAME, "ms", "alone", [pairs[NAME]], measure.at_most(2.0))
    yield measure.compared(ACCEPTED, "ms", "alone", [pairs[ACCEPTED]], measure.at_most(2.0))
    yield measure.compared(VALID, "ms", "alone", [pairs[VALID]], None)


async def _p99s(folder: Path) -> dict[str, tuple[float, float]]:
    """Beside the other calls and alone, in milliseconds, by the name of the row."""
    registry = RegistryServicer()
    registry.want(champion=registry.release(1, W))
    pairs = {}
    async with single_gateway(folder, registry) as (_, address):
        for name, hostile, large in (
            # The first one also warms up: Kafka's JVM compiles during the first half minute.
            (VALID, False, 0),
            (NAME, True, LARGE_BYTES),
            (ACCEPTED, True, LARGEST_ACCEPTED),
        ):
            async with other_channel(address) as channel:
                other = OtherCaller(channel, hostile=hostile, large=large)
                found = await compare(address, other, rounds=ROUNDS)
            measure.console.print(f"  answers {dict(outcomes(found.calls))}; others {dict(other.ended)}")
            pairs[name] = found.p99s
    return pairs
