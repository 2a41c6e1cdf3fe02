"""Training runs, jobs and pipelines."""
