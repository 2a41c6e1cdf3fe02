"""Checks of the names in specifications of steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flywheel_trainer.jobs.errors import InvalidSpec
from flywheel_trainer.pipelines.pipeline_run import ModelName


def check_names(spec: Mapping[str, Any], fields: Sequence[str], project: str, later: Sequence[str]) -> None:
    """Checks that the resources in these fields belong to the project; those in `later` have no name yet.

    Raises InvalidSpec, InvalidName.
    """
    for field in fields:
        if field in later:
            continue
        name = spec.get(field, "")
        if not isinstance(name, str) or not name.startswith(f"projects/{project}/"):
            raise InvalidSpec(
                f"{field} is {name!r:.200}, which is no name in project {project}.", field=field
            )
        if field == "model":
            ModelName.parse(name)
