"""A pipeline run as text: the graph with the states and durations of its steps."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from flywheel_protos.trainer.v1 import trainer_pb2
from flywheel_protos.types.v1 import job_pb2

MARKS = {
    job_pb2.JOB_STATE_QUEUED: "·",
    job_pb2.JOB_STATE_RUNNING: "▶",
    job_pb2.JOB_STATE_SUCCEEDED: "✔",
    job_pb2.JOB_STATE_FAILED: "✘",
    job_pb2.JOB_STATE_CANCELLED: "–",
    job_pb2.JOB_STATE_LOST: "✘",
}

NO_VALUE = "no value"
"""Message of an instance of a fan-out beyond the end of its list."""


def drawing(run: trainer_pb2.PipelineRun, now: datetime) -> list[str]:
    """One line for each step, below the step that it needs last; further needs are named.

    Instances of a fan-out that had no value are left out.

    A step looks like `✔ train (job) 41 s — validation loss 0.31`.
    """
    position = {step.step: number for number, step in enumerate(run.steps)}
    unused = {step.step for step in run.steps if step.message == NO_VALUE}
    steps = [step for step in run.steps if step.step not in unused]
    needs = {step.step: [needed for needed in step.needs if needed not in unused] for step in steps}
    parents = {name: max(needed, key=position.__getitem__, default="") for name, needed in needs.items()}
    lines: list[str] = []

    def draw(parent: str, indent: str) -> None:
        children = [step for step in steps if parents[step.step] == parent]
        for child in children:
            last = child is children[-1]
            branch = ("└─ " if last else "├─ ") if parent else ""
            lines.append(f"{indent}{branch}{_step(child, needs[child.step], parent, now)}")
            draw(child.step, indent + (("   " if last else "│  ") if parent else ""))

    draw("", "")
    return lines


def _step(step: trainer_pb2.PipelineStep, needs: Sequence[str], parent: str, now: datetime) -> str:
    parts = [MARKS.get(step.state, "?"), step.step, f"({step.kind})"]
    if step.HasField("started_at"):
        end = step.ended_at.ToDatetime() if step.HasField("ended_at") else now.replace(tzinfo=None)
        parts.append(_duration(end - step.started_at.ToDatetime()))
    others = [needed for needed in needs if needed != parent]
    if others:
        parts.append(f"[also after {', '.join(others)}]")
    if step.attempt > 1:
        parts.append(f"[try {step.attempt}]")
    if step.waits_for_approval:
        parts.append("[waits for approval]")
    if step.reused_from:
        parts.append("[reused]")
    if step.message:
        parts.append(f"— {step.message}")
    return " ".join(parts)


def _duration(taken: timedelta) -> str:
    seconds = max(0.0, taken.total_seconds())
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
