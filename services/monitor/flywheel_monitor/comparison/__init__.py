"""Challenger against champion: the evidence that a rollout is decided by."""
