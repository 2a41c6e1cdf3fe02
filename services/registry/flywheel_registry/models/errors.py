"""Errors of models and model versions."""

from __future__ import annotations

from flywheel_common.errors import Aborted, AlreadyExists, FailedPrecondition, InvalidArgument, NotFound


class UnknownModel(NotFound):
    """The model does not exist in this project."""

    reason = "UNKNOWN_MODEL"
    remedy = "Create it with CreateModel, or look its name up with ListModels."


class UnknownModelVersion(NotFound):
    """The model has no version with this number."""

    reason = "UNKNOWN_MODEL_VERSION"
    remedy = "Look the number up with ListModelVersions."


class ModelExists(AlreadyExists):
    """A model with this id exists in the project."""

    reason = "MODEL_EXISTS"
    remedy = "Use the existing model, or choose another id."


class EtagMismatch(Aborted):
    """The model was changed after the caller read it."""

    reason = "ETAG_MISMATCH"
    remedy = "Read the model again and repeat the update with its new etag."


class InvalidFieldMask(InvalidArgument):
    """The update mask names a field that cannot be changed, or there is nothing to change."""

    reason = "INVALID_FIELD_MASK"
    remedy = "Name only description, owner, tags, gate_policy or rollout_policy."


class InvalidArtifacts(InvalidArgument):
    """The version declares no artifact, too many artifacts, or two artifacts with one name."""

    reason = "INVALID_ARTIFACTS"
    remedy = "Declare 1 to 100 artifacts whose names differ in more than upper and lower case."


class InvalidArtifactName(InvalidArgument):
    """The artifact name is not a plain file name."""

    reason = "INVALID_ARTIFACT_NAME"
    remedy = "Use 1 to 128 letters, digits, dots, underscores or hyphens, and no path."


class InvalidDigest(InvalidArgument):
    """The declared SHA-256 of an artifact is malformed."""

    reason = "INVALID_DIGEST"
    remedy = "Send the SHA-256 as 64 lower-case hex digits."


class TooLarge(InvalidArgument):
    """An artifact, or one chunk of its upload, exceeds the size limit."""

    reason = "TOO_LARGE"
    remedy = "Stay within the `limit_bytes` of the metadata: send smaller chunks, or a smaller artifact."


class InvalidSignature(InvalidArgument):
    """The signature's inputs, tensors or output contradict each other."""

    reason = "INVALID_SIGNATURE"
    remedy = "Correct each rule that the message lists."


class InvalidGoldenRows(InvalidArgument):
    """The golden rows are too large, do not match the signature, or have an invalid tolerance."""

    reason = "INVALID_GOLDEN_ROWS"
    remedy = "Send the tensors of the signature with the same rows, and a finite tolerance of 0 or more."


class InvalidMetric(InvalidArgument):
    """A metric has no name, or a value that is not finite."""

    reason = "INVALID_METRIC"
    remedy = "Leave the metric out, or send a finite value."


class ArtifactsPending(FailedPrecondition):
    """Bytes of a declared artifact have not been uploaded yet."""

    reason = "ARTIFACTS_PENDING"
    remedy = "Upload the missing artifacts with UploadArtifact first."


class VersionNotChecked(FailedPrecondition):
    """All bytes of the version are stored, and its check has not ended."""

    reason = "VERSION_NOT_CHECKED"
    remedy = "Call CheckModelVersion, which repeats the check."


class InvalidVersion(FailedPrecondition):
    """The version failed its check: its model file, signature, golden rows or feature set contradict."""

    reason = "INVALID_VERSION"
    remedy = "Register a corrected version; reject or delete this one."


class VersionInUse(FailedPrecondition):
    """The version cannot be deleted: its stage, a release or evidence keeps it."""

    reason = "VERSION_IN_USE"
    remedy = "Reject the version instead; what was decided about it stays recorded."


class ConcurrentStageChange(Aborted):
    """Another transaction changed the stage of the version first."""

    reason = "STAGE_CHANGED"
    remedy = "Read the version again and retry."


class ConcurrentChampionChange(Aborted):
    """Another transaction made another version the champion first."""

    reason = "CHAMPION_CHANGED"
    remedy = "Read the model again and retry."


class ConcurrentArtifactChange(Aborted):
    """The declaration of the artifact changed during its upload."""

    reason = "ARTIFACT_CHANGED"
    remedy = "Read the version again and retry."


class UnknownAlias(NotFound):
    """The model has no alias with this name."""

    reason = "UNKNOWN_ALIAS"
    remedy = "Look the alias up with ListModelAliases."


class RejectedAlias(FailedPrecondition):
    """An alias cannot name a rejected version."""

    reason = "REJECTED_ALIAS"
    remedy = "Let the alias name a version that was not rejected."


class InvalidTags(InvalidArgument):
    """The tags of a version are too many, too long, or have an empty key."""

    reason = "INVALID_TAGS"
    remedy = "Use at most 100 tags, keys of 1 to 128 and values of at most 1024 characters."


class InvalidSearch(InvalidArgument):
    """The search has contradicting or too many conditions."""

    reason = "INVALID_SEARCH"
    remedy = "Correct the condition that the message names."
