"""Rollback of a model to a release that served before."""
