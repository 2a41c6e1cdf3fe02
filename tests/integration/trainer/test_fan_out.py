"""A pipeline whose steps run once for each category of a training set."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import flywheel as fw
from flywheel_protos.types.v1 import job_pb2
from tests.support.peers.trainer import FEATURE_SET, landed_spine

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
SPINE = landed_spine(label="")


@fw.pipeline("by-category")
def by_category(p: fw.PipelineBuilder) -> None:
    data = p.training_set("data", feature_set=FEATURE_SET, spine=SPINE)
    each = p.training_set(
        "each",
        feature_set=FEATURE_SET,
        spine=SPINE,
        for_each=data["categories.v__c"],
        at_most=4,
        values={"spine.source.label": p.item()},
    )
    p.select("most", each, "row_count")


async def test_a_step_runs_for_each_category_of_a_training_set(
    trainer_settings: dict[str, str],
    with_peers: dict[str, str],
    peers: Any,
    start_trainer: Callable[[dict[str, str]], Awaitable[Any]],
) -> None:
    trainer = await start_trainer(trainer_settings | with_peers)
    async with fw.Client(trainer=trainer.address) as client:
        await client.apply_pipeline(by_category)
        run = await client.wait_pipeline((await client.run_pipeline("by-category")).name)
    assert {step.state for step in run.steps} == {job_pb2.JOB_STATE_SUCCEEDED}
    labels = [request.spine.source.label for request in peers.feature.build_requests]
    assert sorted(labels) == ["", "AA", "BB"]
    messages = {step.step: step.message for step in run.steps}
    assert messages["each[2]"] == messages["each[3]"] == "no value"
    assert messages["most"].startswith("each[0]: row_count 4000 of 2")
