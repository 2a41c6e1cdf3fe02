"""Rules for the values of outcomes: which labels a model of each kind has."""

from __future__ import annotations

import math
from collections.abc import Sequence

from flywheel_common.signature import OutputKind, OutputSpec
from flywheel_inference.outcomes.row import LABEL, OutcomeRow


def problem(row: OutcomeRow, outputs: Sequence[OutputSpec]) -> str:
    """Why an outcome is refused, as the end of a sentence about it; empty: it is valid. `outputs`: of the
    model's releases, of which one must have the label; empty when none is known."""
    if not row.name:
        return "has no name: send `label` or the name of a business metric"
    if row.class_name:
        if row.name != LABEL:
            return "has a class_name, which only the outcome `label` has: send a value"
        if not math.isnan(row.value):
            return "has a value and a class_name: send one of them"
    elif not math.isfinite(row.value):
        return f"has the value {row.value}: send a finite number"
    if row.name != LABEL or not outputs:
        return ""
    problems = [_label_problem(row, output) for output in outputs]
    return "" if "" in problems else problems[0]


def _label_problem(row: OutcomeRow, output: OutputSpec) -> str:
    if output.kind is OutputKind.MULTICLASS:
        if row.class_name in output.class_names:
            return ""
        given = f"the class {row.class_name!r}" if row.class_name else f"the value {row.value:g}"
        return f"is a label with {given}: send one of the classes {', '.join(output.class_names[:20])}"
    if output.kind is OutputKind.VECTOR:
        return "is a label, which a VECTOR model does not have: name it as a business metric"
    if row.class_name:
        return f"is a label with a class_name: send the value that the {output.kind.name} model predicts"
    if output.kind is OutputKind.BINARY and row.value not in (0.0, 1.0):
        return (
            f"is a label with the value {row.value:g}: the model predicts the probability of label 1, so "
            "send 0 or 1, or name it as a business metric"
        )
    return ""
