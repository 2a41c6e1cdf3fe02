"""Experiments: two arms, their metrics, and the verdict SHIP, ROLL_BACK or CONTINUE."""
