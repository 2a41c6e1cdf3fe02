"""The p99 of healthy callers beside hostile ones, and beside as many valid calls, against their p99 alone.

The first row is what 200 more calls/s cost on this machine when they are valid. Hostile calls: deadlines of
6 ms, ragged vectors, fields of 15 MiB, batches with 1 % bad rows. In the third row the large fields are as
large as the gateway accepts. The others have one kind of hostile calls, and valid ones in place of
the other kinds.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TypeAlias

from bench import measure
from bench.inference.single_gateway import single_gateway
from flywheel_local.layout import LOCAL
from tests.support.hostile_load import (
    HEALTHY,
    HOSTILE,
    LARGE_BYTES,
    LARGEST_ACCEPTED,
    Kind,
    OtherCaller,
    compare,
    other_channel,
)
from tests.support.peers.inference import RegistryServicer
from tests.support.prediction_load import outcomes
from tests.support.servers.inference_processes import W

ROUNDS = 7
NAME = f"p99 of {HEALTHY:.0f} calls/s beside {HOSTILE:.0f} hostile ones"
ACCEPTED = f"{NAME}, fields of 8 MiB"
VALID = f"p99 of {HEALTHY:.0f} calls/s beside {HOSTILE:.0f} valid ones"
Row: TypeAlias = tuple[Collection[Kind], int]
"""The kinds of hostile calls, and the size of large fields."""
ROWS: dict[str, Row] = {
    # The first one also warms up: Kafka's JVM compiles during the first half minute.
    VALID: ((), 0),
    NAME: (tuple(Kind), LARGE_BYTES),
    ACCEPTED: (tuple(Kind), LARGEST_ACCEPTED),
    **{f"{NAME}, {kind}": ((kind,), LARGE_BYTES) for kind in Kind},
}


def run(only: str) -> Iterable[measure.Row]:
    wanted = {name: row for name, row in ROWS.items() if only in name}
    if not wanted:
        return
    LOCAL.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="hostile-", dir=LOCAL))
    try:
        pairs = asyncio.run(_p99s(folder, wanted))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for name, pair in pairs.items():
        bound = measure.at_most(2.0) if name in (NAME, ACCEPTED) else None
        yield measure.compared(name, "ms", "alone", [pair], bound)


async def _p99s(folder: Path, wanted: Mapping[str, Row]) -> dict[str, tuple[float, float]]:
    """Beside the other calls and alone, in milliseconds, by the name of the row."""
    registry = RegistryServicer()
    registry.want(champion=registry.release(1, W))
    pairs = {}
    async with single_gateway(folder, registry) as (_, address):
        for name, (kinds, large) in wanted.items():
            async with other_channel(address) as channel:
                other = OtherCaller(channel, kinds=kinds, large=large)
                found = await compare(address, other, rounds=ROUNDS)
            measure.console.print(f"  answers {dict(outcomes(found.calls))}; others {dict(other.ended)}")
            pairs[name] = found.p99s
    return pairs
