"""The desired state of one model, as the registry publishes it."""

from __future__ import annotations

from dataclasses import dataclass

from flywheel_inference.releases.release import ReleaseSpec


@dataclass(frozen=True, slots=True)
class DesiredModel:
    """Routing and releases that the registry wants for one model. `warm` releases are loaded but get no
    traffic."""

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

    @property
    def active_challenger(self) -> ReleaseSpec | None:
        """The challenger, if it gets canary or shadow traffic."""
        return self.challenger if self.shadow_percent > 0 or self.challenger_percent > 0 else None
