"""In-memory adapters, held to the same contract suites as the real ones."""
