"""Replay of a range: its panes and verdicts computed again from the topics, compared with the stored ones."""
