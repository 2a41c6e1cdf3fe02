"""The async client of the five services.

`client.feature`, `.registry`, `.trainer`, `.inference` and `.monitor` are the generated stubs; their errors
are `FlywheelError`s with a reason. Tasks that need several calls or packed columns have methods of their own.
"""

from __future__ import annotations

from flywheel.experiment_calls import ExperimentCalls
from flywheel.feature_calls import FeatureCalls
from flywheel.governance_calls import GovernanceCalls
from flywheel.mlflow_import import MlflowCalls
from flywheel.model_archive import ArchiveCalls
from flywheel.pipeline_calls import PipelineCalls
from flywheel.rollout_calls import RolloutCalls
from flywheel.tracking.run_calls import RunCalls
from flywheel.tune_calls import TuneCalls
from flywheel.variant_calls import VariantCalls


class Client(
    FeatureCalls,
    TuneCalls,
    PipelineCalls,
    RunCalls,
    RolloutCalls,
    VariantCalls,
    ExperimentCalls,
    GovernanceCalls,
    ArchiveCalls,
    MlflowCalls,
):
    """Use as `async with Client() as client:`."""
