"""Intervals that hold at every look: differences of means, proportions and ratios, and quantiles."""
