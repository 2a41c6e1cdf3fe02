"""Outcomes of models that do not exist, and late predictions by model."""

from __future__ import annotations

import numpy as np

from flywheel_monitor.ingest.batches import IngestCounts
from flywheel_protos.events.v1 import prediction_pb2
from flywheel_protos.monitor.v1 import monitor_pb2
from tests.support.builders.monitor import HOUR_US, MODEL, START_US, predictions
from tests.support.servers.monitor import LocalMonitor, served
from tests.support.strange_events import consume

OTHER = "projects/q/models/late"


def labels(model: str, name: str = "label") -> prediction_pb2.OutcomeBatch:
    return prediction_pb2.OutcomeBatch(
        model=model,
        name=name,
        prediction_ids=["a"],
        outcome_ids=["1"],
        event_times=np.array([START_US], "<i8").tobytes(),
        values=np.array([1.0]).tobytes(),
    )


async def _models(monitor: LocalMonitor) -> set[str]:
    async with monitor.store.reading() as records:
        return {name for _, name, _ in await records.policies()}


async def test_outcomes_of_a_model_that_does_not_exist_are_refused(monitor: LocalMonitor) -> None:
    monitor.references.models = {MODEL}
    for name in ("label", "revenue"):
        assert 1 == await consume(monitor, 0, labels(OTHER, name))
    assert set() == await _models(monitor)
    assert 0 == await consume(monitor, 0, labels(MODEL)), "its first prediction is still to come"
    assert {MODEL} == await _models(monitor)
    assert IngestCounts(outcomes=1, orphans=1) == await monitor.counts()
    await monitor.predicted(predictions(["a"]))
    assert 1 == (await monitor.performance()).quality.labelled


async def test_outcomes_are_kept_while_the_registry_cannot_be_asked(monitor: LocalMonitor) -> None:
    monitor.references.models, monitor.references.down = set(), True
    assert 0 == await consume(monitor, 0, labels(MODEL))
    assert IngestCounts(outcomes=1, orphans=1) == await monitor.counts()


async def test_a_model_with_waiting_predictions_exists(monitor: LocalMonitor) -> None:
    monitor.references.down = True
    await monitor.predicted(predictions(["a"]))
    monitor.references.models, monitor.references.down = set(), False
    assert 0 == await consume(monitor, 0, labels(MODEL))


async def test_late_predictions_are_counted_by_model(monitor: LocalMonitor) -> None:
    third = "projects/p/models/third"
    for model, late in ((MODEL, 2), (OTHER, 1), (third, 3)):
        await monitor.predicted(predictions(["first"], model=model))
        async with monitor.store.transaction() as records:
            version = await records.version(f"{model}/versions/1")
            assert version is not None
            for labelled in (False, True):
                await records.close(version.id, START_US + 2 * HOUR_US, labels=labelled)
        await monitor.predicted(predictions([f"{i}" for i in range(late)], model=model))
    async with monitor.store.reading() as records:
        assert [(third, 3), (MODEL, 2)] == await records.late_by_model("p", 9)
        assert [(third, 3)] == await records.late_by_model("p", 1)
        assert [(OTHER, 1)] == await records.late_by_model("q", 9)
    async with served(monitor.store) as stub:
        status = await stub.GetIngestStatus(monitor_pb2.GetIngestStatusRequest(parent="projects/p"))
    assert 5 == status.late_predictions
    assert [(third, 3), (MODEL, 2)] == [(m.model, m.late_predictions) for m in status.late_models]
