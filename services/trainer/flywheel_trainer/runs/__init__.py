"""Experiments, training runs and their metrics, and the lease that makes a run LOST."""
