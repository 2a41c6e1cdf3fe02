"""100,000 events of two models that share every id, with events of wrong clocks among them."""

from __future__ import annotations

import pytest

from tests.support.servers.monitor import memory_monitor, postgres_monitor
from tests.support.strange_events import MODELS, run

EVENTS = 100_000


@pytest.mark.timeout(900)
async def test_wrong_clocks_and_shared_ids_change_no_verdict_of_many(database: str) -> None:
    async with postgres_monitor(database) as monitor:
        found = await run(monitor, EVENTS, [0, 1], strange=True)
    clean = {m: (await run(memory_monitor(), EVENTS, [i], strange=False))[m] for i, m in enumerate(MODELS)}
    assert clean == {m: found[m] for m in MODELS}
    assert EVENTS == clean[MODELS[0]]["performance"].predictions
