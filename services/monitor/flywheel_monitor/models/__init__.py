"""Watched models: resource names and the policy by which a model is watched."""
