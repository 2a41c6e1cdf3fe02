"""Errors of jobs, and the reasons that are stored as `error_reason` of a job that did not succeed."""

from __future__ import annotations

from typing import Self

from flywheel_common.errors import (
    Cancelled,
    DataLoss,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
)


class InvalidSpec(InvalidArgument):
    """A field of the job or pipeline specification is missing or out of range; `field` is in the metadata."""

    reason = "INVALID_SPEC"
    remedy = "Correct the field that the message names."


class InvalidLogStream(InvalidArgument):
    """The log stream of WatchJob has another form than `driver` or `rank-N`."""

    reason = "INVALID_LOG_STREAM"
    remedy = "Use `driver`, or `rank-` and the number of the rank."


class InvalidSource(InvalidArgument):
    """The source archive is damaged, too large, or has another size or digest than announced."""

    reason = "INVALID_SOURCE"
    remedy = "Upload the archive again with the SDK of this version, from a folder with the source code only."


class UnknownSource(NotFound):
    """The source archive of the job was not uploaded."""

    reason = "UNKNOWN_SOURCE"
    remedy = "Upload it with UploadSource first."


class UnknownJob(NotFound):
    """The job does not exist in this project."""

    reason = "UNKNOWN_JOB"
    remedy = "Look its name up with ListJobs."

    @classmethod
    def of(cls, name: object) -> Self:
        return cls(f"Job {str(name)!r} does not exist.", job=name)


class JobEnded(FailedPrecondition):
    """The job has ended and can no longer be cancelled."""

    reason = "JOB_ENDED"
    remedy = "Read how it ended with GetJob."

    @classmethod
    def of(cls, name: object, state: str) -> Self:
        return cls(f"Job {str(name)!r} has ended as {state}.")


class UnknownTrainingSet(NotFound):
    """The feature service does not know the training set."""

    reason = "UNKNOWN_TRAINING_SET"
    remedy = "Build the training set with BuildTrainingSet first."

    @classmethod
    def of(cls, name: str) -> Self:
        return cls(f"Training set {name!r} does not exist: build it first.")


class ShortFeatureNames(FailedPrecondition):
    """The training set was built with short feature names, which a model signature cannot refer to."""

    reason = "SHORT_FEATURE_NAMES"
    remedy = "Build the training set with full feature names."

    @classmethod
    def of(cls, name: str) -> Self:
        return cls(
            f"Training set {name!r} has short feature names, which a model signature cannot refer to: "
            "build it with full names."
        )


class UnknownModelVersion(NotFound):
    """The model version that the job reads does not exist."""

    reason = "UNKNOWN_MODEL_VERSION"
    remedy = "Name a version that the registry has, or leave warm_start empty."

    @classmethod
    def of(cls, name: str) -> Self:
        return cls(f"Model version {name!r} does not exist.")


class NoModelFile(FailedPrecondition):
    """The run or the version has no `model.onnx`, or the run's `report.json` does not describe it."""

    reason = "NO_MODEL_FILE"
    remedy = "Name a run that exported a model with `ctx.export`, or a version whose files are stored."


class UnsupportedSignature(FailedPrecondition):
    """The job cannot read the model's inputs or outputs, such as vectors."""

    reason = "UNSUPPORTED_SIGNATURE"
    remedy = "Use a model with scalar inputs and a BINARY, MULTICLASS or REGRESSION output."


class DigestMismatch(DataLoss):
    """The bytes of an artifact do not have the SHA-256 that was declared for it."""

    reason = "DIGEST_MISMATCH"
    remedy = "Train the model again; check the object store if it happens again."


class JobLost(FailedPrecondition):
    """The compute engine no longer knows the job, and the job left no outcome: its machine was lost."""

    reason = "JOB_LOST"
    remedy = "Submit the job again."


class JobCrashed(FailedPrecondition):
    """The process of the job ended without an outcome; the message contains the end of its log."""

    reason = "JOB_CRASHED"
    remedy = "Read the job's log, for example for memory that ran out, and submit the job again."


class JobKilled(FailedPrecondition):
    """The process of the job was killed by a signal, for example when memory ran out."""

    reason = "JOB_KILLED"
    remedy = "Give the job more memory or fewer workers on a machine, and submit it again."


class JobTimeout(FailedPrecondition):
    """An attempt took longer than the timeout of the job and was stopped."""

    reason = "JOB_TIMEOUT"
    remedy = "Raise limits.timeout, or make the job shorter."


class JobStalled(FailedPrecondition):
    """The job made no step for the stall timeout and was stopped, for example because a collective hangs."""

    reason = "JOB_STALLED"
    remedy = "Read the job's log for ranks that wait; raise limits.stall_timeout if a step takes that long."


class JobStopped(FailedPrecondition):
    """The job was stopped on the compute engine, but not by this service."""

    reason = "JOB_STOPPED"
    remedy = "Submit the job again; cancel jobs with CancelJob."


class NotSupervisable(Internal):
    """The supervisor failed several times in a row on this job with an unexpected error."""

    reason = "NOT_SUPERVISABLE"
    remedy = "Report the message with the trainer's log; submit the job again."


class InfeasibleResources(FailedPrecondition):
    """The cluster, or the quota of the project, can never satisfy the resources that the job requests."""

    reason = "INFEASIBLE_RESOURCES"
    remedy = "Request fewer workers, CPUs or GPUs, or enlarge the cluster or the project's quota."


class CancelledOnRequest(Cancelled):
    """The job or the pipeline run was cancelled on request."""

    reason = "CANCELLED"
    remedy = "Submit it again if it is still needed."


class UnknownRelease(NotFound):
    """The registry does not know the release or model version that a SCORE job names."""

    reason = "UNKNOWN_RELEASE"
    remedy = "Name a release of the registry (`flywheel models show`)."

    @classmethod
    def of(cls, name: str) -> Self:
        return cls(f"Release {name!r} does not exist.")


class UnscorableRelease(FailedPrecondition):
    """The version of the release has no model file, or no feature set and signature to score with."""

    reason = "UNSCORABLE_RELEASE"
    remedy = "Score with a release whose version has model.onnx, a signature and a feature set."


class UnknownTable(NotFound):
    """There is no Parquet file at the address of the table."""

    reason = "UNKNOWN_TABLE"
    remedy = "Write the table to the address first, or correct table_uri."


class WrongTable(InvalidArgument):
    """The table lacks a column, has no rows, or has a column that predictions cannot have; `column` is in the
    metadata."""

    reason = "WRONG_TABLE"
    remedy = "Write the table with the columns that the message names."


class NoPredictionCache(FailedPrecondition):
    """The trainer has no address of the Redis from which the gateways read cached predictions."""

    reason = "NO_PREDICTION_CACHE"
    remedy = "Set cached_predictions_url of the trainer, or submit the job without cache_ttl."


class FeaturesNotJoined(FailedPrecondition):
    """The feature service could not join the features to the table; the message has its reason."""

    reason = "FEATURES_NOT_JOINED"
    remedy = "Correct the table or the views as the message says, and submit the job again."
