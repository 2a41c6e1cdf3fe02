"""TODO docstring."""

from __future__ import annotations

from dataclasses import dataclass

from flywheel_inference.releases.release import ReleaseSpec


@dataclass(frozen=True, slots=True)
class DesiredModel:
    """One model's share of the desired state, as the registry wants it."""

    model: str
    generation: int
    champion: ReleaseSpec | None
    challenger: ReleaseSpec | None = None
    rollout: str = ""
    shadow_percent: float = 0.0
    challenger_percent: float = 0.0
    warm: tuple[ReleaseSpec, ...] = ()

    @property
    def releases(self) -> tuple[ReleaseSpec, ...]:
        """Every release to keep loaded, the most urgent first."""
        return tuple(r for r in (self.champion, self.challenger, *self.warm) if r is not None)


@dataclass(frozen=True, slots=True)
class ObservedModel:
    """What this gateway makes of a model: the generation that it applies (0: none), and release → why it is not ready."""

    model: str
    generation: int
    ready_releases: tuple[str, ...]
    failures: dict[str, str]
