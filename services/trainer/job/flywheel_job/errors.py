"""Errors that end a training job; their reasons are stored as the job's `error_reason`."""

from __future__ import annotations

from flywheel_common.errors import DataLoss, FailedPrecondition, InvalidArgument


class UnusableTrainingSet(FailedPrecondition):
    """The recipe cannot train on this training set; the message names the column or the cause."""

    reason = "UNUSABLE_TRAINING_SET"
    remedy = (
        "Build a training set with 0/1 labels of both classes, at least 10 rows, and supported feature types."
    )


class TooFewEventTimes(FailedPrecondition):
    """The rows have too few distinct event times to be split into training, calibration and evaluation."""

    reason = "TOO_FEW_EVENT_TIMES"
    remedy = "Build a training set whose labelled rows have at least 3 distinct event times."


class TooFewTrainingRows(FailedPrecondition):
    """The training rows, without the holdout, are fewer than the workers."""

    reason = "TOO_FEW_TRAINING_ROWS"
    remedy = "Use fewer workers, a smaller holdout_fraction, or a training set with more rows."


class TrainingFailed(FailedPrecondition):
    """The training code raised an exception; the message has the last lines of its traceback."""

    reason = "TRAINING_FAILED"
    remedy = "Read the job's log, correct the hyperparameters or the training set, and submit the job again."


class InvalidSource(InvalidArgument):
    """The source archive is damaged, too large, or has files outside of its own folder."""

    reason = "INVALID_SOURCE"
    remedy = "Submit the job again with the SDK of this version, from a folder with the source code only."


class InvalidFunction(InvalidArgument):
    """The function that the job names is missing, or does not accept exactly one argument (`ctx`)."""

    reason = "INVALID_FUNCTION"
    remedy = "Name a function as `file.py:function`, with the file's path relative to the source folder."


class InvalidRequirements(InvalidArgument):
    """The requirements of the job cannot be installed; the message has the last lines of the installer."""

    reason = "INVALID_REQUIREMENTS"
    remedy = "Correct the requirements file, check that it can be installed on the cluster, and submit again."


class EnvironmentsUnusable(FailedPrecondition):
    """A machine of the cluster cannot make environments of jobs."""

    reason = "ENVIRONMENTS_UNUSABLE"
    remedy = "Install uv on the machines of the cluster, or set job_uv of the trainer to its path."


class InvalidParams(InvalidArgument):
    """A parameter is unknown, missing or of the wrong type; the message names each one."""

    reason = "INVALID_PARAMS"
    remedy = "Correct the parameters that the message names, and submit the job again."


class UnknownDataSet(InvalidArgument):
    """The training code reads a data set that the job does not name."""

    reason = "UNKNOWN_DATA_SET"
    remedy = "Add the data set to the job, or read one of those that the message names."


class EmptyDataSet(FailedPrecondition):
    """The data set has fewer rows than the job has workers."""

    reason = "EMPTY_DATA_SET"
    remedy = "Use a data set with at least one row for each worker."


class NonFiniteMetric(FailedPrecondition):
    """The training code logged a metric that is NaN or infinite, such as the loss of a diverged model."""

    reason = "NON_FINITE_METRIC"
    remedy = "Lower the learning rate, clip the gradients, or remove invalid values from the data set."


class WrongCheckpoint(FailedPrecondition):
    """The checkpoint is of another model: parameters are missing or have another shape."""

    reason = "WRONG_CHECKPOINT"
    remedy = "Restore into the model, optimizer and state that the checkpoint was saved from."


class CorruptCheckpoint(DataLoss):
    """A file of a complete checkpoint is missing or has another size."""

    reason = "CORRUPT_CHECKPOINT"
    remedy = "Start the job again without its checkpoints, and check the object store."


class InvalidExport(FailedPrecondition):
    """The exported model does not match its signature, or does not compute scores for the example rows."""

    reason = "INVALID_EXPORT"
    remedy = (
        "Export a model from INPUT [rows, inputs] to SCORE [rows, outputs] with a dynamic number of rows."
    )


class UnsupportedStrategy(InvalidArgument):
    """The parallel strategy does not fit the number of workers or the model."""

    reason = "UNSUPPORTED_STRATEGY"
    remedy = "Choose a strategy and a number of workers that fit together, as the message states."


class WorkerLost(FailedPrecondition):
    """A worker's process or machine was lost during training."""

    reason = "WORKER_LOST"
    remedy = (
        "The job is attempted again by itself; look for memory that ran out if it happens at every attempt."
    )


class MissingPackage(FailedPrecondition):
    """The job needs a Python package that the environment of its workers does not have."""

    reason = "MISSING_PACKAGE"
    remedy = "Use an environment with the package; recipes need flywheel-job[estimators]."


class UnusableTable(FailedPrecondition):
    """The table of a SCORE job, joined with its features, does not fit the model; the message names why."""

    reason = "UNUSABLE_TABLE"
    remedy = "Correct the column that the message names, or score with a release of the table's feature set."


class CacheUnavailable(FailedPrecondition):
    """The Redis of the gateways did not take the predictions of a SCORE job, which are complete on S3."""

    reason = "CACHE_UNAVAILABLE"
    remedy = "Restore Redis, or correct cached_predictions_url of the trainer, and submit the job again."


class SegmentNotReached(FailedPrecondition):
    """The training code returned before it had saved a checkpoint at the last step of a segment."""

    reason = "SEGMENT_NOT_REACHED"
    remedy = "Let the code train for as many steps as the schedule has, and save checkpoints with `ctx.save`."


class TrialStopped(FailedPrecondition):
    """Early stopping has ended this trial: others were better at the same step."""

    reason = "TRIAL_STOPPED"
    remedy = "Nothing is wrong; raise min_steps or the reduction_factor if trials end too early."


class UnknownMetric(FailedPrecondition):
    """The training code does not log a metric that the TUNE job compares trials by."""

    reason = "UNKNOWN_METRIC"
    remedy = "Name one of the metrics that the message lists, or log the metric with `ctx.log`."


class TooManyFailedTrials(FailedPrecondition):
    """As many trials of the TUNE job failed as max_failed_trials permits; the message has the last error."""

    reason = "TOO_MANY_FAILED_TRIALS"
    remedy = "Correct the training code or the search space, or raise max_failed_trials."


class NoSuccessfulTrial(FailedPrecondition):
    """All trials of the TUNE job have ended and none succeeded."""

    reason = "NO_SUCCESSFUL_TRIAL"
    remedy = "Correct the training code or the search space as the errors of the trials say."


class UnusableEvaluationSet(FailedPrecondition):
    """The rows cannot be evaluated: none are left, a column is missing, or labels do not fit the output."""

    reason = "UNUSABLE_EVALUATION_SET"
    remedy = "Correct the rows, or the column, kind or time range of the job that the message names."


class TooManyRows(FailedPrecondition):
    """The evaluation has more rows than one job keeps scores of."""

    reason = "TOO_MANY_ROWS"
    remedy = "Evaluate a shorter time range, or a sample of the rows."


class UnusableModel(FailedPrecondition):
    """ONNX Runtime cannot load or run the model, its files are damaged, or its outputs are unusable."""

    reason = "UNUSABLE_MODEL"
    remedy = "Register a version whose model.onnx runs with the tensors and ranges of its signature."


class NothingToQuantize(FailedPrecondition):
    """The model has no matrix product or convolution with constant weights, such as a tree ensemble."""

    reason = "NOTHING_TO_QUANTIZE"
    remedy = "Export the model in the format FLOAT32."


class ExportRefused(FailedPrecondition):
    """The exported model differs from its source by more than the policy of the job allows."""

    reason = "EXPORT_REFUSED"
    remedy = "Use another format or more calibration rows, or allow the difference in the policy of the job."
