"""How the quality of probabilities is computed, in the trainer and the monitor alike: figures of served
predictions are compared with those of held-out rows."""

from __future__ import annotations

SMALLEST_PROBABILITY = 1e-7
"""Smallest distance of a probability from 0 and 1 in a logarithm; float32 scores resolve about 6e-8."""
CALIBRATION_BINS = 10
"""Equal-width bins of [0, 1] of the calibration error."""
