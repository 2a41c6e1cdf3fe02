"""Errors of pipeline runs, and the reasons that are stored as `error_reason` of a failed one."""

from __future__ import annotations

from typing import Self

from flywheel_common.errors import FailedPrecondition, Internal, InvalidArgument, NotFound


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


class InvalidPipeline(InvalidArgument):
    """The graph of a pipeline, or a value for one of its parameters, is wrong; `field` is in the metadata."""

    reason = "INVALID_PIPELINE"
    remedy = "Correct the step that the message names."


class PipelineCycle(InvalidArgument):
    """Steps of the graph need each other in a circle, so that none of them can begin."""

    reason = "PIPELINE_CYCLE"
    remedy = "Remove one of the references between the steps that the message names."


class MissingInput(InvalidArgument):
    """A step has no value for a field that it needs, or refers to a step, output or parameter that does not
    exist."""

    reason = "MISSING_STEP_INPUT"
    remedy = "Set the field, or refer to an output of an earlier step."


class UnknownStepKind(InvalidArgument):
    """A step has no kind that this service knows."""

    reason = "UNKNOWN_STEP_KIND"
    remedy = "Set one of the kinds that the message lists."


class UnknownPipeline(NotFound):
    """The pipeline, or this version of it, does not exist."""

    reason = "UNKNOWN_PIPELINE"
    remedy = "Look its name up with ListPipelines."

    @classmethod
    def of(cls, name: object) -> Self:
        return cls(f"Pipeline {str(name)!r} does not exist.", pipeline=name)


class UnknownStep(NotFound):
    """The pipeline run has no step with this id."""

    reason = "UNKNOWN_STEP"
    remedy = "Look the steps up with GetPipelineRun."

    @classmethod
    def of(cls, run: object, step: str) -> Self:
        return cls(f"Pipeline run {str(run)!r} has no step {step!r}.", step=step)


class PipelineRunActive(FailedPrecondition):
    """The pipeline run has not ended, so its steps cannot be run again."""

    reason = "PIPELINE_RUN_ACTIVE"
    remedy = "Wait for its end, or cancel it."

    @classmethod
    def of(cls, name: object) -> Self:
        return cls(f"Pipeline run {str(name)!r} has not ended.")


class StepNotWaiting(FailedPrecondition):
    """The step does not wait for an approval: it is of another kind, has not begun, or was decided."""

    reason = "STEP_NOT_WAITING"
    remedy = "Read the state of the step with GetPipelineRun."

    @classmethod
    def of(cls, run: object, step: str) -> Self:
        return cls(f"Step {step!r} of {run} does not wait for an approval.")


class ApprovalRejected(FailedPrecondition):
    """A person rejected the step, which ended the pipeline run."""

    reason = "APPROVAL_REJECTED"
    remedy = "Read the reason in the step's message."


class StepTimeout(FailedPrecondition):
    """The step took longer than its timeout."""

    reason = "STEP_TIMEOUT"
    remedy = "Raise the timeout of the step, or make it faster."


class StepStopped(FailedPrecondition):
    """Another step of the run failed, so this one was stopped."""

    reason = "STEP_STOPPED"
    remedy = "Read the error of the failed step."


class MissingOutput(FailedPrecondition):
    """A step has ended without an output that another step needs."""

    reason = "MISSING_OUTPUT"
    remedy = "Read the outputs of the step with GetPipelineRun, and correct the reference."

    @classmethod
    def of(cls, step: str, output: str) -> Self:
        return cls(f"Step {step!r} has no output {output!r}.", step=step, output=output)


class MissingArtifact(FailedPrecondition):
    """The run of a job has no model or no report, so that it cannot be registered."""

    reason = "MISSING_ARTIFACT"
    remedy = "Call ctx.export in the training code."


class UnsupportedModel(FailedPrecondition):
    """The report of a run contradicts itself about the outputs, classes or calibration of its model."""

    reason = "UNSUPPORTED_MODEL"
    remedy = "Correct `task`, `classes` and `calibration` of the report that the code passes to `ctx.export`."
