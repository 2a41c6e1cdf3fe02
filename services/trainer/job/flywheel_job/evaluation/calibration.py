"""Fits Platt scaling by maximum likelihood; the JSON form of calibrations, which a gateway applies, too.

Platt, "Probabilistic outputs for support vector machines", 1999; without his target smoothing, because the
calibration rows number thousands and the fit must equal an unpenalised logistic regression.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from flywheel_common.arrays import Floats
from flywheel_common.scoring.calibration import Isotonic, Platt, Temperature, logit, sigmoid
from flywheel_job.evaluation.metrics import Weights

IDENTITY = Platt()


def fit_platt(
    labels: npt.ArrayLike, scores: npt.ArrayLike, weights: Weights = None, *, iterations: int = 100
) -> Platt:
    """Newton's method with step halving on the convex negative log-likelihood, weighted by row.

    Returns the identity if there is no finite optimum that keeps the order: one class only, equal scores,
    rows that a threshold separates perfectly, or a slope that is not positive (it would reverse the ranking).
    """
    y = np.asarray(labels, dtype=np.float64)
    z = logit(scores)
    w = np.ones_like(y) if weights is None else np.asarray(weights, dtype=np.float64)
    y, z, w = y[w > 0], z[w > 0], w[w > 0]
    if len(y) < 2 or y.min() == y.max() or z.min() == z.max() or _separable(y, z):
        return IDENTITY
    w = w / w.mean()
    centre, scale = float(z.mean()), float(z.std())
    x = np.column_stack([(z - centre) / scale, np.ones_like(z)])
    beta = np.array([scale, centre])  # the identity in standardised coordinates
    loss = _loss(x, y, w, beta)
    for _ in range(iterations):
        p = sigmoid(x @ beta)
        gradient = x.T @ (w * (p - y))
        hessian = (x * (w * p * (1 - p))[:, None]).T @ x + 1e-12 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        size = 1.0
        while (candidate := _loss(x, y, w, beta - size * step)) > loss and size > 1e-8:
            size /= 2
        beta, previous, loss = beta - size * step, loss, candidate
        if previous - loss <= 1e-12 * max(1.0, abs(previous)):
            break
    slope = float(beta[0] / scale)
    intercept = float(beta[1] - beta[0] * centre / scale)
    # Rounding errors decide the sign of a standardised slope near 0.
    rises = beta[0] > 1e-6 and np.isfinite([slope, intercept]).all()
    return Platt(slope, intercept) if rises else IDENTITY


def _loss(x: Floats, y: Floats, w: Floats, beta: Floats) -> float:
    z = x @ beta
    return float(np.sum(w * (np.logaddexp(0.0, z) - y * z)))


def _separable(y: Floats, z: Floats) -> bool:
    return bool(z[y == 1].min() >= z[y == 0].max() or z[y == 1].max() <= z[y == 0].min())


Calibration = Platt | Isotonic
"""Of the probability of one class."""

KINDS: Mapping[str, type[Platt | Isotonic | Temperature]] = {
    "platt": Platt,
    "isotonic": Isotonic,
    "temperature": Temperature,
}


def calibration_to_json(calibration: Calibration | Temperature) -> dict[str, Any]:
    """One field with the name of the kind."""
    name = next(name for name, kind in KINDS.items() if isinstance(calibration, kind))
    return {name: asdict(calibration)}


def calibration_from_json(fields: Mapping[str, Any]) -> Calibration | Temperature:
    """The inverse of `calibration_to_json`; also after a round trip through JSON.

    Raises KeyError, TypeError or ValueError for anything else.
    """
    ((name, values),) = fields.items()
    kind: Callable[..., Calibration | Temperature] = KINDS[name]
    return kind(**{key: _numbers(value) for key, value in values.items()})


def _numbers(value: Any) -> float | tuple[float, ...]:
    return tuple(map(float, value)) if isinstance(value, list | tuple) else float(value)
