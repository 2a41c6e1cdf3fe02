"""A gateway above its capacity, which is measured first: what it still answers, and how late (ADR 0076).

Model server and logs are in memory, so that the gateway has its core for itself; the client has the other.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from bench import measure
from flywheel_local.layout import LOCAL
from tests.support.overload import capacity, load
from tests.support.servers.memory_gateway import memory_gateway

SECONDS = 4.0
TIMES = (1.5, 2.0, 4.0)
WITH_TARGETS = 2.0
GOODPUT, ANSWER_MS, REFUSAL_MS = 0.8, 50.0, 20.0


def run(only: str) -> Iterable[measure.Row]:
    if only not in "overload":
        return
    LOCAL.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="overload-", dir=LOCAL))
    try:
        with memory_gateway(folder) as gateway:
            highest = asyncio.run(capacity(gateway, 2.0))
            yield measure.row("overload: capacity", highest, "calls/s", None)
            for times in TIMES:
                found = asyncio.run(load(gateway, "open", times * highest, SECONDS))
                measure.console.print(f"  {times} x: {found}")
                name, wanted = f"overload: {times:g} x capacity", times == WITH_TARGETS
                targets = (
                    (measure.at_least(GOODPUT, of_value=True) if wanted else None),
                    (measure.at_most(ANSWER_MS, of_value=True) if wanted else None),
                    (measure.at_most(REFUSAL_MS, of_value=True) if wanted else None),
                )
                yield measure.row(f"{name}, answered", float(found.good / highest), "of capacity", targets[0])
                yield measure.row(f"{name}, p99 of answers", found.good_p99, "ms", targets[1])
                yield measure.row(f"{name}, p99 of refusals", found.refused_p99, "ms", targets[2])
                after = asyncio.run(load(gateway, "open", 50.0, 1.0))
                yield measure.row(f"{name}, p99 in the second after it", after.good_p99, "ms", None)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
