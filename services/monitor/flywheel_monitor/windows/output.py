"""The output of a model version: its kind, and how an answer becomes one score, a bin and a class.

The score of a row is its probability (BINARY), the probability of the most probable class (MULTICLASS), the
predicted number (REGRESSION) or the Euclidean norm (VECTOR). Kind, width and classes are those of the
version's first batch and never change, because its predictions are counted by them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from flywheel_common.arrays import Floats, Ints, Mask
from flywheel_common.signature import OutputKind
from flywheel_monitor.windows.histograms import SCORE_BINS, score_bins
from flywheel_monitor.windows.projection import Projections

LARGEST_SCORE = 2.0**40
"""Scores and labels with a larger absolute value are not usable: the fourth power of twice this is the
largest term of a sum (`windows.sums`)."""
MAX_CLASSES = 256
"""Classes with counts of their own; the further ones share one more."""
CLASS_BINS = 20
"""Equal-width bins of [0, 1] of the probability of one class."""
REAL_STEPS = 40
"""Bins of a number per unit of asinh((x - center) / scale): a width of scale / 40 at the center, 2.5 % of the
distance far from it."""
REAL_REACH = 50 * REAL_STEPS
"""Bins on each side of the center: asinh of 1e21 is 49."""
REAL_BINS = 2 * REAL_REACH + 1


def within_limit(values: Floats) -> Mask:
    """[n] finite values that are not larger than LARGEST_SCORE."""
    found: Mask = np.abs(values) <= LARGEST_SCORE
    return found


@dataclass(frozen=True)
class Output:
    """`width` values per row; `class_names` of MULTICLASS. `center` and `scale` place the bins of REGRESSION
    and VECTOR; `projections` of VECTOR, None for versions that were counted before there were any."""

    kind: OutputKind = OutputKind.BINARY
    width: int = 1
    class_names: tuple[str, ...] = ()
    center: float = 0.0
    scale: float = 1.0
    projections: Projections | None = None

    @property
    def unit_interval(self) -> bool:
        """Whether scores are probabilities."""
        return self.kind in (OutputKind.BINARY, OutputKind.MULTICLASS)

    @property
    def bins(self) -> int:
        """Number of score bins."""
        return SCORE_BINS if self.unit_interval else REAL_BINS

    @property
    def classes(self) -> int:
        """Classes that are counted; 0 for other kinds than MULTICLASS."""
        n = len(self.class_names)
        return n if n <= MAX_CLASSES else MAX_CLASSES + 1

    @cached_property
    def _index(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.class_names)}

    def class_index(self, name: str) -> int:
        """The column of a class, -1 for an unknown one."""
        return self._index.get(name, -1)

    def counted_class(self, columns: Ints) -> Ints:
        """[n] index among the counted classes."""
        return np.minimum(columns, MAX_CLASSES)

    def same(self, other: Output) -> bool:
        """Whether rows of both can be counted together."""
        return (self.kind, self.width, self.class_names) == (other.kind, other.width, other.class_names)

    def describe(self) -> str:
        """E.g. `MULTICLASS of 3 values`."""
        return f"{self.kind.name} of {self.width} value{'s' if self.width > 1 else ''}"

    def scores(self, outputs: Floats) -> Floats:
        """[n] score of each row of [n, width] outputs; NaN where a value is not finite."""
        if self.kind is OutputKind.MULTICLASS:
            found: Floats = outputs.max(axis=1)
        elif self.kind is OutputKind.VECTOR:
            with np.errstate(over="ignore", invalid="ignore"):
                found = np.sqrt((outputs * outputs).sum(axis=1))
        else:
            return outputs[:, 0]
        return np.where(np.isfinite(outputs).all(axis=1), found, np.nan)

    def score_bins(self, scores: Floats) -> Ints:
        """[n] bin of each finite score."""
        if self.unit_interval:
            return score_bins(scores)
        steps = np.rint(np.arcsinh((scores - self.center) / self.scale) * REAL_STEPS)
        return (np.clip(steps, -REAL_REACH, REAL_REACH) + REAL_REACH).astype(np.int64)

    def edges(self) -> Floats:
        """[bins - 1] right edges of all score bins but the last."""
        if self.unit_interval:
            return np.arange(1, SCORE_BINS) / SCORE_BINS
        middle = np.arange(REAL_BINS - 1) + 0.5 - REAL_REACH
        found: Floats = self.center + self.scale * np.sinh(middle / REAL_STEPS)
        return found

    def placed(self, mean: float | None, stddev: float | None, scores: Floats) -> Output:
        """The output with bins around the reference's moments, else around these [n] first scores (median and
        interquartile range)."""
        if self.unit_interval:
            return self
        if mean is None or stddev is None or not stddev > 0:
            known = scores[within_limit(scores)]
            if not len(known):
                return self
            low, mean, high = (float(q) for q in np.quantile(known, [0.25, 0.5, 0.75]))
            stddev = (high - low) / 1.349 or abs(mean) / 100 or 1.0
        return replace(self, center=float(mean), scale=float(stddev))

    def projecting(self, outputs: Floats, seed: str) -> Output:
        """The output of VECTOR with projections on the directions of the seed, with bins around these
        [n, width] first values."""
        known = outputs[within_limit(self.scores(outputs))] if self.kind is OutputKind.VECTOR else outputs[:0]
        return replace(self, projections=Projections.around(seed, known)) if len(known) else self

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": int(self.kind),
            "width": self.width,
            "class_names": list(self.class_names),
            "center": self.center,
            "scale": self.scale,
            "projections": None if self.projections is None else asdict(self.projections),
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Output:
        return cls(
            OutputKind(stored["kind"]),
            stored["width"],
            tuple(stored["class_names"]),
            stored["center"],
            stored["scale"],
            _projections(stored.get("projections")),
        )


def _projections(stored: Mapping[str, Any] | None) -> Projections | None:
    if stored is None:
        return None
    centers, scales = tuple(stored["centers"]), tuple(stored["scales"])
    return Projections(stored["seed"], stored["width"], centers, scales)
