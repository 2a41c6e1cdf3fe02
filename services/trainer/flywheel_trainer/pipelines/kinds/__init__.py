"""The kinds of steps of a pipeline."""
