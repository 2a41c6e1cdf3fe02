"""What the report of a run tells about its model: the kind of its output, and its calibration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flywheel_common.scoring.calibration import Temperature
from flywheel_common.signature import OutputKind, OutputSpec
from flywheel_job.evaluation.calibration import Calibration, calibration_from_json
from flywheel_job.model_file import BINARY, KINDS, MULTICLASS

CALIBRATIONS: Mapping[OutputKind, tuple[str, ...]] = {
    OutputKind.BINARY: ("platt", "isotonic"),
    OutputKind.MULTICLASS: ("temperature",),
}
"""Kind of the output → its kinds of calibration; the others have none."""


def output_of(report: Mapping[str, Any], kind: str = "") -> OutputSpec:
    """The output of the model of a report; `kind` counts if the report names no task.

    Without both, several outputs are the probabilities of classes, and one is that of the positive class. The
    classes are the report's `classes`, or the numbers from 0. Raises ValueError or TypeError if the report
    contradicts itself.
    """
    outputs = int(report.get("outputs", 1))
    task = str(report.get("task") or kind or (MULTICLASS if outputs > 1 else BINARY)).upper()
    if task not in KINDS:
        raise ValueError(f"the task {task}")
    if (task == MULTICLASS) != (outputs > 1):
        raise ValueError(f"{outputs} outputs for the task {task}")
    if task != MULTICLASS:
        return OutputSpec(OutputKind[task])
    names = tuple(str(name) for name in report.get("classes") or range(outputs))
    if len(names) != outputs or len(set(names)) != outputs or not all(names):
        raise ValueError(f"{outputs} outputs, but the classes {', '.join(names)[:200]}")
    return OutputSpec(OutputKind.MULTICLASS, class_names=names)


def calibration_json(report: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON form of the calibration, one field with the name of its kind; empty without one.

    A report has the slope and intercept of Platt scaling, or this form. Raises TypeError, KeyError or
    ValueError for anything else.
    """
    found = dict(report.get("calibration") or {})
    if "slope" in found:
        found = {"platt": found}
    if found:
        calibration_from_json(found)
    return found


def calibration_of(report: Mapping[str, Any], kind: OutputKind) -> Calibration | Temperature | None:
    """The calibration of an output of this kind; None without one.

    Raises ValueError for a calibration of another kind of output, and the errors of `calibration_json`.
    """
    found = calibration_json(report)
    if not found:
        return None
    if wrong := found.keys() - set(CALIBRATIONS.get(kind, ())):
        raise ValueError(f"a {min(wrong)} calibration for a {kind.name} output")
    return calibration_from_json(found)
