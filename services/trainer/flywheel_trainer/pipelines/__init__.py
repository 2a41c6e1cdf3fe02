"""Pipelines from a training set to a rollout: runs, steps, comparison with the champion."""
