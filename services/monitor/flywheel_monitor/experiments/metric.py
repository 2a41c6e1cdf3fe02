"""A metric: what it adds per subject, and its estimate."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from enum import IntEnum
from fractions import Fraction
from typing import Any, NamedTuple

from flywheel_common.names import ID_RULE
from flywheel_monitor.intervals.samples import Estimate, SubjectSums, adjusted, mean, proportion, ratio


class MetricRole(IntEnum):
    """Numbers equal those of the API."""

    UNSPECIFIED = 0
    PRIMARY = 1
    SECONDARY = 2
    GUARDRAIL = 3


class MetricKind(IntEnum):
    """Numbers equal those of the API."""

    UNSPECIFIED = 0
    PROPORTION = 1
    MEAN = 2
    RATIO = 3
    QUANTILE = 4


COUNT = "prediction.count"
FAILURES = "prediction.failures"
COST = "prediction.cost"
LATENCY = "prediction.latency_ms"
_OF_PREDICTIONS = frozenset({COUNT, FAILURES, COST})
SCALE = 2**32
"""Amounts are integers, 1 / SCALE each, so that sums are exact in any order."""


class MetricSums(NamedTuple):
    """Sums over subjects, as in `SubjectSums`: m and d in 1 / SCALE, products in 1 / SCALE^2."""

    m: int = 0
    mm: int = 0
    d: int = 0
    dd: int = 0
    md: int = 0

    def plus(self, m: int, d: int, sign: int) -> MetricSums:
        """With one subject more, or less for sign -1."""
        return MetricSums(
            self.m + sign * m,
            self.mm + sign * m * m,
            self.d + sign * d,
            self.dd + sign * d * d,
            self.md + sign * m * d,
        )

    def over(self, n: int) -> SubjectSums:
        square = SCALE * SCALE
        return SubjectSums(
            n,
            Fraction(self.m, SCALE),
            Fraction(self.mm, square),
            Fraction(self.d, SCALE),
            Fraction(self.dd, square),
            Fraction(self.md, square),
        )


@dataclass(frozen=True)
class Metric:
    """See `ExperimentMetric` of the API. `denominator` is empty but for RATIO, `covariate` for RATIO."""

    name: str
    role: MetricRole
    kind: MetricKind
    numerator: str = ""
    denominator: str = ""
    lower_is_better: bool = False
    max_loss: float = 0.0
    relative: bool = False
    minimum_effect: float = 0.0
    quantile: float = 0.99
    covariate: str = ""

    @property
    def decides(self) -> bool:
        return self.role is not MetricRole.SECONDARY

    @property
    def amounts(self) -> tuple[str, ...]:
        """The names of the amounts that it needs per subject."""
        if self.kind is MetricKind.QUANTILE:
            return ()
        second = self.denominator or self.covariate
        return (self.numerator, second) if second else (self.numerator,)

    def of_subject(self, amounts: Mapping[str, int]) -> tuple[int, int]:
        """(m, d) of a subject in 1 / SCALE."""
        if self.kind is MetricKind.QUANTILE:
            return 0, 0
        m, d = [*(amounts.get(name, 0) for name in self.amounts), 0][:2]
        return (SCALE if m > 0 else 0) if self.kind is MetricKind.PROPORTION else m, d

    def estimates(self, control: SubjectSums, treatment: SubjectSums) -> tuple[Estimate, Estimate]:
        """The values of both arms; not for QUANTILE."""
        if self.covariate:
            return adjusted(control, treatment, proportions=self.kind is MetricKind.PROPORTION)
        return self.estimate(control), self.estimate(treatment)

    def estimate(self, sums: SubjectSums) -> Estimate:
        """The value of an arm without covariate; not for QUANTILE.

        A share that no subject has, or all have, has no variance, which would say nothing for ever about an
        error rate of 0: its variance is that of one subject of n + 1 which differs from the others."""
        match self.kind:
            case MetricKind.PROPORTION:
                return _with_variance(proportion(sums), 1.0)
            case MetricKind.RATIO:
                found = ratio(sums)
                if (self.numerator, self.denominator) != (FAILURES, COUNT) or not sums.d:
                    return found
                return _with_variance(found, float(sums.dd * sums.n / sums.d**2))
            case _:
                return mean(sums)

    def problems(self) -> list[str]:
        """What is wrong with it."""
        found = []
        if not re.fullmatch(ID_RULE, self.name):
            found.append(f"metric name {self.name!r} does not match {ID_RULE}")
        if self.role is MetricRole.UNSPECIFIED or self.kind is MetricKind.UNSPECIFIED:
            found.append(f"role and kind of {self.name} must be set")
        if self.kind is MetricKind.QUANTILE:
            if self.numerator != LATENCY or not 0 < self.quantile < 1:
                found.append(f"{self.name} must be a quantile between 0 and 1 of {LATENCY}")
        elif not all(_is_amount(name) for name in self.amounts):
            found.append(f"{self.name} needs the name of an outcome, or {', '.join(sorted(_OF_PREDICTIONS))}")
        if self.denominator and self.kind is not MetricKind.RATIO:
            found.append(f"{self.name} is no ratio and has no denominator")
        if self.covariate and (
            self.kind not in (MetricKind.MEAN, MetricKind.PROPORTION)
            or self.covariate.startswith("prediction.")
            or self.covariate == self.numerator
        ):
            found.append(f"{self.name}: only a mean or a proportion has a covariate, an outcome of its own")
        limits = (self.max_loss, self.minimum_effect)
        if not all(math.isfinite(x) and x >= 0 for x in limits):
            found.append(f"max_loss and minimum_effect of {self.name} must be finite and not negative")
        if self.role is MetricRole.GUARDRAIL and not self.max_loss > 0:
            found.append(
                f"max_loss of the guardrail {self.name} must be positive: no test proves a loss of 0"
            )
        return found

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Metric:
        role, kind = MetricRole(stored["role"]), MetricKind(stored["kind"])
        return cls(**{**stored, "role": role, "kind": kind})


def _with_variance(found: Estimate, factor: float) -> Estimate:
    """`factor`: mean square of the subjects' predictions over the square of their mean."""
    if found.variance > 0 or not found.n:
        return found
    share = 1 / (found.n + 1)
    return replace(found, variance=factor * share * (1 - share))


def _is_amount(name: str) -> bool:
    return name in _OF_PREDICTIONS or (bool(name) and not name.startswith("prediction."))
