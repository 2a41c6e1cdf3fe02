"""Events of wrong clocks and models that share ids change nothing for the others."""

from __future__ import annotations

from tests.support.servers.monitor import LocalMonitor, memory_monitor
from tests.support.strange_events import MODELS, WINDOWS, run


async def test_wrong_clocks_and_shared_ids_change_no_verdict(monitor: LocalMonitor) -> None:
    clean = {m: (await run(memory_monitor(), 2000, [i], strange=False))[m] for i, m in enumerate(MODELS)}
    found = await run(monitor, 2000, [0, 1], strange=True)
    assert 8 == found["dead"], "the prediction and the label of two wrong times for each model"
    assert clean == {m: found[m] for m in MODELS}
    counts = clean[MODELS[0]]["counts"]
    assert (2000, 2000, 0, 0, 0) == (
        counts.predictions,
        counts.outcomes,
        counts.orphans,
        counts.duplicates,
        counts.late,
    )
    assert WINDOWS - 1 <= clean[MODELS[0]]["evaluated"]
    assert clean[MODELS[0]]["alerts"] and not clean[MODELS[1]]["alerts"]
