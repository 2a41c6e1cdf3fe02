"""Artifacts: the bytes of a model version's files, in and out of the object store."""
