"""TODO docstring."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ServingStatus:
    """What this gateway serves for one model; `generation` 0: no generation is applied whole."""

    model: str
    generation: int
    champion: str
    challenger: str
    shadow_percent: float
    challenger_percent: float
    ready_releases: tuple[str, ...]
    failures: dict[str, str]
