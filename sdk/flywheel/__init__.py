"""Flywheel for Python: declare features, train, release and call models.

import flywheel as fw
"""

from flywheel.aggregations import (
    Aggregation,
    approx_distinct,
    count,
    first,
    last,
    last_n,
    maximum,
    mean,
    minimum,
    std,
    total,
)
from flywheel.client import Client
from flywheel.connection import now, timestamp
from flywheel.definitions import (
    BatchView,
    DeltaSource,
    Entity,
    FeatureSet,
    OnDemandView,
    ParquetSource,
    RequestSource,
    StreamSource,
    StreamView,
    compile_definitions,
    load_module,
)
from flywheel.errors import FlywheelError, JobFailedError, NotFound, SourceError, Unavailable
from flywheel.experiments import Experiment, Latency, Metric, cost_per_prediction, error_rate
from flywheel.model_jobs import EvaluateJob, ExportJob
from flywheel.model_watch import Activity, ModelWatch
from flywheel.online_matrix import OnlineMatrix
from flywheel.pipeline_builder import PipelineBuilder, compile_pipeline, pipeline
from flywheel.pipeline_values import Step as PipelineStep
from flywheel.recipes import TransformerRecipe
from flywheel.release_serving import ReleaseServing
from flywheel.replay import Events, Replay, Requests
from flywheel.report import alerts_table, versions_table
from flywheel.score_job import ScoreJob
from flywheel.storage import read_table, storage, write_table
from flywheel.sync_client import SyncClient, connect
from flywheel.tracking import autolog
from flywheel.tracking.errors import TrackingError
from flywheel.tracking.run import Run
from flywheel.tracking.run import start as run
from flywheel.train_job import TrainJob
from flywheel.tune_job import Asha, Choices, FloatRange, IntRange, PopulationBased, TuneJob
from flywheel.types import (
    BOOL,
    BOOL_LIST,
    BYTES,
    FLOAT32,
    FLOAT32_LIST,
    FLOAT64,
    FLOAT64_LIST,
    INT64,
    INT64_LIST,
    STRING,
    STRING_LIST,
    TIMESTAMP,
    TIMESTAMP_LIST,
    vector,
)
from flywheel.validation import Rule
from flywheel.variant_calls import Variant
from flywheel_common.grpc.channel import ClientTls

__all__ = [
    "BOOL",
    "BOOL_LIST",
    "BYTES",
    "FLOAT32",
    "FLOAT32_LIST",
    "FLOAT64",
    "FLOAT64_LIST",
    "INT64",
    "INT64_LIST",
    "STRING",
    "STRING_LIST",
    "TIMESTAMP",
    "TIMESTAMP_LIST",
    "Activity",
    "Aggregation",
    "Asha",
    "BatchView",
    "Choices",
    "Client",
    "ClientTls",
    "DeltaSource",
    "Entity",
    "EvaluateJob",
    "Events",
    "Experiment",
    "ExportJob",
    "FeatureSet",
    "FloatRange",
    "FlywheelError",
    "IntRange",
    "JobFailedError",
    "Latency",
    "Metric",
    "ModelWatch",
    "NotFound",
    "OnDemandView",
    "OnlineMatrix",
    "ParquetSource",
    "PipelineBuilder",
    "PipelineStep",
    "PopulationBased",
    "ReleaseServing",
    "Replay",
    "RequestSource",
    "Requests",
    "Rule",
    "Run",
    "ScoreJob",
    "SourceError",
    "StreamSource",
    "StreamView",
    "SyncClient",
    "TrackingError",
    "TrainJob",
    "TransformerRecipe",
    "TuneJob",
    "Unavailable",
    "Variant",
    "alerts_table",
    "approx_distinct",
    "autolog",
    "compile_definitions",
    "compile_pipeline",
    "connect",
    "cost_per_prediction",
    "count",
    "error_rate",
    "first",
    "last",
    "last_n",
    "load_module",
    "maximum",
    "mean",
    "minimum",
    "now",
    "pipeline",
    "read_table",
    "run",
    "std",
    "storage",
    "timestamp",
    "total",
    "vector",
    "versions_table",
    "write_table",
]
