"""Errors of pipeline runs, and the reasons that are stored as `error_reason` of a failed one."""

from __future__ import annotations

from typing import Self

from flywheel_common.errors import FailedPrecondition, Internal, NotFound


class UnknownPipelineRun(NotFound):
    """The pipeline run does not exist in this project."""

    reason = "UNKNOWN_PIPELINE_RUN"
    remedy = "Look its name up with ListPipelineRuns."

    @classmethod
    def of(cls, name: object) -> Self:
        return cls(f"Pipeline run {str(name)!r} does not exist.", pipeline_run=name)


class PipelineRunEnded(FailedPrecondition):
    """The pipeline run has ended and can no longer be cancelled."""

    reason = "PIPELINE_RUN_ENDED"
    remedy = "Read how it ended with GetPipelineRun."

    @classmethod
    def of(cls, name: object, state: str) -> Self:
        return cls(f"Pipeline run {str(name)!r} has ended as {state}.")


class TrainingSetFailed(FailedPrecondition):
    """The feature service could not build the training set; the message contains its error."""

    reason = "TRAINING_SET_FAILED"
    remedy = "Correct the spine or the feature set, and start a new pipeline run."


class LeakingTrainingSet(FailedPrecondition):
    """The training set was built by a naive join, which reads values from after the label's time."""

    reason = "LEAKING_TRAINING_SET"
    remedy = "Use a spine that builds point-in-time correct training sets."


class RejectedVersion(FailedPrecondition):
    """The registry's offline gate rejected the model version, so it cannot be released."""

    reason = "REJECTED_VERSION"
    remedy = "Read the gate's findings in the version's evidence, and train a better version."


class WorkflowFailed(Internal):
    """The workflow engine ended the pipeline's workflow before its last step."""

    reason = "WORKFLOW_FAILED"
    remedy = "Read the trainer's log, and start a new pipeline run."
