"""TODO docstring."""

from __future__ import annotations

CHAMPION, CHALLENGER, SHADOW = 1, 2, 3
