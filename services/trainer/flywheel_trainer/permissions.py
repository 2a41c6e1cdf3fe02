"""The permission that each RPC needs (jwt mode)."""

from __future__ import annotations

from flywheel_common.grpc.auth import (
    ATTEMPT,
    OPERATE,
    READ,
    REPORT,
    RESUME,
    WRITE,
    Permission,
    Permissions,
)

SERVICE = "flywheel.trainer.v1.TrainerService"

_METHODS: dict[Permission, tuple[str, ...]] = {
    READ: (
        "ListExperiments",
        "GetRun",
        "ListRuns",
        "ListMetricPoints",
        "GetJob",
        "ListJobs",
        "WatchJob",
        "GetPipelineRun",
        "ListPipelineRuns",
        "WatchPipelineRun",
        "GetRetrainingPolicy",
        "ListRetrainingPolicies",
        "ListRetrainingDecisions",
        "GetPipeline",
        "ListPipelines",
        "ExplainModelVersion",
        "ListBestTrials",
        "ListCheckpoints",
        "DownloadRunArtifact",
    ),
    WRITE: (
        "CreateExperiment",
        "CreateRun",
        "UpdateRun",
        "UploadSource",
        "SubmitJob",
        "CancelJob",
        "StartPipelineRun",
        "CancelPipelineRun",
        "ApplyPipeline",
        "RerunPipelineRun",
        "RegisterTrial",
        "EditRun",
        "DeleteRun",
        "RestoreRun",
        "ContinueRun",
        "UploadRunArtifact",
    ),
    REPORT: ("LogMetrics",),
    OPERATE: ("SetRetrainingPolicy", "ApprovePipelineStep", "PurgeRuns"),
    RESUME: ("ListTrials",),
    ATTEMPT: ("RecordTrial", "RecordCheckpoints", "SignObjectRequests"),
}

PERMISSIONS: Permissions = {
    f"/{SERVICE}/{method}": permission for permission, methods in _METHODS.items() for method in methods
}
