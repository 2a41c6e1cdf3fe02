"""The flights example on a slice of the year, against a platform of real processes."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

import flywheel as fw
from flywheel_local.platform import Platform
from flywheel_protos.feature.v1 import feature_pb2
from flywheel_protos.monitor.v1 import monitor_pb2
from flywheel_protos.registry.v1 import model_pb2, registry_pb2
from flywheel_protos.trainer.v1 import trainer_pb2
from tests.support.servers.platform import addresses, client_environment, example_output, platform

__all__ = ["addresses", "client_environment", "example_output", "platform"]

MODEL = "projects/default/models/late-arrival"

pytestmark = pytest.mark.timeout(900)


async def test_the_first_model_reaches_production_with_its_lineage(
    example_output: str, addresses: dict[str, str]
) -> None:
    async with fw.Client(**addresses) as client:
        model = (await client.registry.GetModel(registry_pb2.GetModelRequest(name=MODEL))).model
        request = registry_pb2.GetModelVersionRequest(name=model.production_version)
        version = (await client.registry.GetModelVersion(request)).model_version
        assert version.stage == model_pb2.STAGE_PRODUCTION
        training_set = await client.feature.GetTrainingSet(
            feature_pb2.GetTrainingSetRequest(name=version.training_dataset)
        )
        assert training_set.training_set.row_count > 1000
        assert len(version.artifacts) >= 1
        assert version.metrics["auc"] > 0.55


async def test_answers_are_logged_and_joined_with_their_labels(
    example_output: str, addresses: dict[str, str]
) -> None:
    async with fw.Client(**addresses) as client:
        versions = await client.registry.ListModelVersions(
            registry_pb2.ListModelVersionsRequest(parent=MODEL)
        )
        first = versions.model_versions[-1].name
        found = (
            await client.monitor.GetPerformance(monitor_pb2.GetPerformanceRequest(model_version=first))
        ).performance
        assert found.predictions > 500
        assert found.coverage > 0.8
        assert 0.4 < found.auc <= 1.0


async def test_drift_is_detected_and_starts_a_retraining(
    example_output: str, addresses: dict[str, str]
) -> None:
    async with fw.Client(**addresses) as client:
        alerts = await client.monitor.ListAlerts(
            monitor_pb2.ListAlertsRequest(parent="projects/default", filter=f"model={MODEL}")
        )
        drifted = next(a for a in alerts.alerts if a.kind == "DATA_DRIFT")
        assert "sky__temp" in [f.feature for f in drifted.features], "April is warmer than the winter"
        runs = await client.trainer.ListPipelineRuns(
            trainer_pb2.ListPipelineRunsRequest(parent="projects/default")
        )
        caused = [r for r in runs.pipeline_runs if r.cause_alert]
        assert [r.cause_alert for r in caused] == [drifted.name]
        challenger = await client.registry.GetModelVersion(
            registry_pb2.GetModelVersionRequest(name=caused[0].model_version)
        )
        assert challenger.model_version.cause_alert == drifted.name


async def test_online_features_equal_their_offline_recomputation(
    example_output: str, addresses: dict[str, str]
) -> None:
    async with fw.Client(**addresses) as client:
        report = await client.check_skew(await client.prediction_archive("late-arrival", rows=900))
        assert report.predictions > 500
        assert report.mismatches == 0, [f for f in report.features if f.mismatch_count]


async def test_the_example_ends_with_its_table(example_output: str) -> None:
    for row in ("calibration error", "most drifted", "predictions", "skew", "rollback", "naive join", "INT8"):
        assert row in example_output
    assert "flips" in example_output, "the champion was exported with 8-bit weights"


async def test_a_restarted_platform_keeps_its_state(
    example_output: str, platform: Platform, addresses: dict[str, str]
) -> None:
    keys = {"carrier": "UA", "tailnum": "N14228", "origin": "EWR", "dest": "IAH"}
    april = datetime(2013, 4, 10, 12, tzinfo=UTC)

    async def answered() -> tuple[object, ...]:
        async with fw.Client(**addresses) as client:
            predicted = await client.predict(
                "late-arrival", keys, {"hour": 8, "distance": 1400.0}, as_of=april
            )
            assert not predicted.degraded
            found = monitor_pb2.ListAlertsRequest(parent="projects/default")
            alerts = sorted(a.name for a in (await client.monitor.ListAlerts(found)).alerts)
            return predicted.score, predicted.model_version, alerts

    before = await answered()
    await asyncio.to_thread(platform.stop)
    await asyncio.to_thread(platform.start)
    assert before == await answered()
