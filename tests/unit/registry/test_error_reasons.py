"""The reasons and status codes of the registry's errors, which are part of its API."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

import flywheel_registry
from flywheel_common.errors import FlywheelError

REASONS = {
    "ABORTED": {
        "ARTIFACT_CHANGED",
        "ARTIFACT_COLLECTED",
        "CHAMPION_CHANGED",
        "ETAG_MISMATCH",
        "ROLLOUT_STARTED",
        "SPEC_CHANGED",
        "STAGE_CHANGED",
    },
    "ALREADY_EXISTS": {
        "MODEL_EXISTS",
        "WEBHOOK_EXISTS",
    },
    "DEADLINE_EXCEEDED": {"STREAM_IDLE"},
    "DATA_LOSS": {"DIGEST_MISMATCH"},
    "FAILED_PRECONDITION": {
        "ALREADY_SERVING",
        "ARTIFACTS_PENDING",
        "FEATURE_SET_MISMATCH",
        "GATE_FAILED",
        "ILLEGAL_TRANSITION",
        "INVALID_VERSION",
        "MODEL_IN_USE",
        "NOTHING_TO_ROLL_BACK_TO",
        "NOT_AN_EXPERIMENT",
        "NOT_DECLARED",
        "NOT_LOADED",
        "NOT_PAUSED",
        "NOT_STAGED",
        "NO_RELEASE",
        "OWN_VERSION",
        "PARTS_MISSING",
        "REJECTED_ALIAS",
        "REJECTED_VERSION",
        "RELEASE_IN_USE",
        "ROLLOUT_ACTIVE",
        "ROLLOUT_ENDED",
        "VARIANT_NOT_ALLOWED",
        "VERSION_IN_USE",
        "VERSION_NOT_CHECKED",
        "WEBHOOK_HOST_NOT_ALLOWED",
    },
    "INVALID_ARGUMENT": {
        "INVALID_ARTIFACTS",
        "INVALID_ARTIFACT_NAME",
        "INVALID_CALIBRATION",
        "INVALID_DIGEST",
        "INVALID_FALLBACK",
        "INVALID_FEATURE_POLICY",
        "INVALID_SERVING_POLICY",
        "INVALID_FIELD_MASK",
        "INVALID_FILTER",
        "INVALID_GOLDEN_ROWS",
        "INVALID_GRACE",
        "INVALID_METRIC",
        "INVALID_PART",
        "INVALID_POLICY",
        "INVALID_RANGE",
        "INVALID_SEARCH",
        "INVALID_SIGNATURE",
        "INVALID_STAGE",
        "INVALID_TAGS",
        "INVALID_THRESHOLD",
        "INVALID_VARIANTS",
        "INVALID_VERDICT",
        "REASON_REQUIRED",
        "TARGET_MISSING",
        "TARGET_REPEATED",
        "TOO_LARGE",
        "WRONG_MODEL",
    },
    "NOT_FOUND": {
        "NOT_RESTORABLE",
        "UNKNOWN_ALIAS",
        "UNKNOWN_EVIDENCE",
        "UNKNOWN_MODEL",
        "UNKNOWN_MODEL_VERSION",
        "UNKNOWN_RELEASE",
        "UNKNOWN_ROLLOUT",
    },
    "PERMISSION_DENIED": {"EVIDENCE_PRODUCER_REQUIRED"},
}


def error_classes() -> Iterator[type[FlywheelError]]:
    for module in pkgutil.walk_packages(flywheel_registry.__path__, "flywheel_registry."):
        if module.name.endswith(".errors"):
            for value in vars(importlib.import_module(module.name)).values():
                if isinstance(value, type) and value.__module__ == module.name:
                    yield value


def test_reasons_and_status_codes_stay_as_documented() -> None:
    found: dict[str, set[str]] = {}
    for error in error_classes():
        found.setdefault(error.code.name, set()).add(error.reason)
    assert found == REASONS


def test_each_reason_is_one_class_with_a_meaning_and_a_remedy() -> None:
    classes = list(error_classes())
    assert len({error.reason for error in classes}) == len(classes)
    assert [] == [error for error in classes if not (error.__doc__ and error.remedy)]
