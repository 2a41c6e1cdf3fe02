"""Quality of labelled predictions, and verdicts on it."""
