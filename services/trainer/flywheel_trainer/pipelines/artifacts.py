"""Reads artifacts of runs, and describes them to the registry."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from flywheel_common.signature import OutputSpec
from flywheel_job.outcome import Artifact


def version_fields(
    report: Mapping[str, Any], output: OutputSpec, artifacts: Mapping[str, Artifact]
) -> dict[str, Any]:
    """The fields of a model version that its report and its files determine."""
    golden = report["golden"]
    return {
        "framework": report["framework"],
        "inputs": report["inputs"],
        "output": output,
        "artifacts": [(a.name, a.size_bytes, a.sha256) for a in artifacts.values()],
        "golden_rows": golden["row_count"],
        "golden_inputs": base64.b64decode(golden["inputs"]),
        "golden_scores": base64.b64decode(golden["scores"]),
        "parent_version": report.get("warm_started_from", ""),
        "tags": {"teacher": report["teacher"]} if report.get("teacher") else {},
    }
