"""Shadow copies for one release neither delay nor displace those for another."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from flywheel_common.errors import Unavailable
from flywheel_common.scoring.feature_block import FeatureBlock, FeatureColumn
from flywheel_inference.prediction.shadow import ShadowCopies
from flywheel_inference.prediction_log.rows import LogRows
from flywheel_inference.releases.serving_policy import ServingPolicy
from flywheel_protos.types.v1 import value_pb2
from tests.support.builders.inference import LOG_CONTRACT, LOG_SPEC, log_request
from tests.support.eventually import eventually

BLOCK = FeatureBlock(
    LOG_CONTRACT.feature_set,
    (FeatureColumn("a__x", value_pb2.DATA_TYPE_FLOAT64, np.zeros(1), np.ones(1, np.bool_)),),
    np.ones((1, 1), np.uint8),
)


class Challenger:
    """A challenger that fails once `answers` is set."""

    def __init__(self, name: str) -> None:
        self.spec = SimpleNamespace(
            model="m",
            name=name,
            signature=LOG_SPEC.signature,
            segment_keys=(),
            segment_thresholds={},
            serving=ServingPolicy(),
        )
        self.contract = LOG_CONTRACT
        self.answers = asyncio.Event()

    async def score_block(self, block: FeatureBlock, thresholds: Any, budget: float) -> Any:
        await self.answers.wait()
        raise Unavailable("down")


async def test_a_challenger_that_hangs_delays_only_its_own_copies() -> None:
    logged: list[LogRows] = []
    shadow = ShadowCopies(logged.append, max_rows=3)
    slow, quick = Challenger("slow"), Challenger("quick")
    quick.answers.set()
    for number in range(10):
        shadow.offer(cast("Any", slow), "r", [log_request(number)], BLOCK)
    shadow.offer(cast("Any", quick), "r", [log_request(10)], BLOCK)
    assert shadow.dropped_count == 7
    running = asyncio.create_task(shadow.run())
    try:
        await eventually(lambda: [rows.spec.name for rows in logged] == ["quick"], within=5)
        assert shadow.uses(cast("Any", slow)) and not shadow.uses(cast("Any", quick))
        slow.answers.set()
        await eventually(lambda: len(logged) == 4, within=5)
        assert not shadow.uses(cast("Any", slow))
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_waiting_copies_are_bounded_in_bytes() -> None:
    request = log_request(1)
    one = BLOCK.size_bytes + request.call.size_bytes
    shadow = ShadowCopies(lambda rows: None, max_bytes=2 * one)
    for _ in range(5):
        shadow.offer(cast("Any", Challenger("m")), "r", [request], BLOCK)
    assert shadow.dropped_count == 3
