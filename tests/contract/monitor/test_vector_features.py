"""Drift of a feature that is a vector, from the profile of the training set to the answers of the API."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest

from flywheel_common.columns import from_numpy, to_table
from flywheel_feature.api.convert_training_sets import training_set_to_proto
from flywheel_feature.definitions.model import DataType
from flywheel_feature.offline.model import JoinMode, SourceSpine, TrainingSet
from flywheel_feature.offline.profile import profile_column
from flywheel_monitor.drift.verdict import Verdict
from flywheel_monitor.ingest.decode import prediction_columns
from flywheel_monitor.store.grpc.references import column_references
from flywheel_protos.events.v1 import prediction_pb2
from flywheel_protos.feature.v1 import training_set_pb2
from flywheel_protos.monitor.v1 import distribution_pb2, explanation_pb2, monitor_pb2
from tests.contract.monitor.test_api import at
from tests.support.builders.monitor import MINUTE_US, REFERENCE, START_US, predictions, version_name
from tests.support.servers.monitor import LocalMonitor, served

NAME, WIDTH, ROWS = "v__embedding", 6, 2000


def vectors(rows: int, seed: int, shift: float = 0.0) -> np.ndarray:
    found = np.random.default_rng(seed).normal(size=(rows, WIDTH))
    found[:, 1] += shift
    return found.astype(np.float32)


def training_profile() -> training_set_pb2.ColumnProfile:
    """As GetTrainingSet gives it."""
    column = pl.Series(NAME, vectors(10_000, 1), dtype=pl.Array(pl.Float32, WIDTH))
    built = TrainingSet(
        project="p",
        id="winter",
        feature_set="projects/p/featureSets/flights/versions/2",
        view_versions=(),
        spine=SourceSpine("landings", "scheduled", "delay >= 15", 1, 2),
        mode=JoinMode.POINT_IN_TIME,
        uri="s3://b/x/",
        content_hash="0123",
        row_count=10_000,
        label_mean=0.25,
        min_time=0,
        max_time=1,
        schema=(),
        profile=(profile_column(column, DataType.FLOAT32_VECTOR),),
        unlabelled_count=0,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        build_seconds=1.0,
    )
    return training_set_to_proto(built).profile[0]


async def serve(monitor: LocalMonitor, values: np.ndarray, valid: np.ndarray) -> None:
    """Predictions of the first minute whose logged features are `v__x` and the vectors."""
    monitor.references.known[version_name()] = replace(
        REFERENCE, columns=(*REFERENCE.columns, *column_references([training_profile()], {NAME, "v__x"}))
    )
    drawn = np.random.default_rng(5).normal(size=len(values))
    found = predictions([str(i) for i in range(len(values))], values=drawn)
    message = prediction_pb2.PredictionBatch.FromString(found.records[0].payload)
    columns = [*message.features.columns, from_numpy(NAME, values, valid)]
    message.features.CopyFrom(to_table(columns))
    await monitor.predicted(prediction_columns(message, message.SerializeToString()))


@pytest.mark.parametrize(("shift", "verdict"), [(0.0, Verdict.NO_DRIFT), (4.0, Verdict.DRIFT)])
async def test_vectors_are_compared_with_those_of_the_training_set(
    monitor: LocalMonitor, shift: float, verdict: Verdict
) -> None:
    await serve(monitor, vectors(ROWS, 2, shift), np.arange(ROWS) % 50 != 0)
    found = await monitor.report(start_us=START_US, end_us=START_US + MINUTE_US)
    embedding = {d.feature: d for d in found.features}[NAME]
    assert {"v__x", NAME} == {d.feature for d in found.features}
    assert (verdict, 0.02, None) == (embedding.verdict, embedding.null_rate, embedding.mean_shift)


async def test_the_api_shows_a_vector_as_one_feature_with_projections(edge: LocalMonitor) -> None:
    await serve(edge, vectors(ROWS, 2, 4.0), np.ones(ROWS, np.bool_))

    def span(request: object) -> object:
        return at(at(request, "start_time", START_US), "end_time", START_US + MINUTE_US)

    async with served(edge.store) as stub:
        answer = await stub.GetDriftReport(span(monitor_pb2.GetDriftReportRequest(name=version_name())))
        request = distribution_pb2.GetDistributionsRequest(name=version_name())
        shown = await stub.GetDistributions(span(request))
        why = await stub.ExplainDrift(span(explanation_pb2.ExplainDriftRequest(name=version_name())))
    first = answer.report.features[0]
    assert (NAME, monitor_pb2.DRIFT_VERDICT_DRIFT) == (first.feature, first.verdict)
    assert not first.HasField("mean_shift")
    assert first.projection_shift > 1
    axes = [one for one in shown.features if one.vector == NAME]
    assert [f"{NAME} projection {k}" for k in range(1, 9)] == [one.name for one in axes]
    assert {(10_000, ROWS)} == {(sum(one.reference), sum(one.observed)) for one in axes}
    assert [NAME, "v__x"] == [one.feature for one in why.features]
    assert first.psi_corrected == pytest.approx(why.features[0].drift)
