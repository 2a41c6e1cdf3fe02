"""Errors of runs."""

from __future__ import annotations

from flywheel_common.errors import NotFound
from flywheel_trainer.runs.run import RunName


def unknown_run(name: RunName) -> NotFound:
    return NotFound(f"Run {str(name)!r} does not exist.", reason="UNKNOWN_RUN", run=name)
