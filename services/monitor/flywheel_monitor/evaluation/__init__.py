"""Judging windows: what is due, the report on a window, and what follows from its verdicts."""
