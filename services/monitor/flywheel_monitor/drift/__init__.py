"""Statistics and verdicts on the features and scores of a window."""
