"""Long-running jobs: runner, progress, cancellation."""
