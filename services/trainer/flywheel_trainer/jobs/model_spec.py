"""What the specifications of EVALUATE and EXPORT jobs share: the model that they read, and bounds."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from flywheel_common.value import micros
from flywheel_trainer.jobs.errors import InvalidSpec
from flywheel_trainer.jobs.limits import Limits, check_limits

MODEL = re.compile(r"projects/[^/]+/models/[^/]+")
VERSION = re.compile(rf"{MODEL.pattern}/versions/\d{{1,18}}")
COLUMN = re.compile(r"\S.{0,199}")


@dataclass(frozen=True)
class ModelSource:
    """A model version, or the artifact of a run: exactly one of them is set."""

    model_version: str = ""
    run: str = ""

    @property
    def name(self) -> str:
        return self.model_version or self.run

    @property
    def model(self) -> str:
        """`projects/{project}/models/{model}` of a version; empty for a run."""
        return self.model_version.rpartition("/versions/")[0]


def check_rules(field: str, rules: Iterable[tuple[bool, str, str]]) -> None:
    """Raises InvalidSpec for the first rule (broken, name, text) that is broken."""
    for broken, name, text in rules:
        if broken:
            raise InvalidSpec(f"{field}.{name} {text}.", field=f"{field}.{name}")


def check_model_job(
    field: str,
    experiment: str,
    source: ModelSource,
    times: tuple[datetime | None, datetime | None],
    limits: Limits,
    cpus: float,
    seed: int,
) -> None:
    """Raises InvalidSpec naming the field below `field`."""
    start, end = times
    wrong_version = bool(source.model_version) and VERSION.fullmatch(source.model_version) is None
    check_rules(
        field,
        [
            (not experiment, "experiment", "must name the experiment of the run"),
            (not source.name, "model_version", "or `run` must name the model"),
            (
                wrong_version,
                "model_version",
                "must be of the form projects/{project}/models/{model}/versions/{version}",
            ),
            (
                start is not None and end is not None and start >= end,
                "end_time",
                "must be after start_time",
            ),
            (not 0 <= cpus <= 1024, "cpus", "must be between 0 and 1024"),
            (not 0 <= seed < 1 << 32, "seed", "must be below 2^32"),
        ],
    )
    check_limits(limits, field)


def microseconds(at: datetime | None) -> int | None:
    """Microseconds since the epoch."""
    return None if at is None else micros(at)
