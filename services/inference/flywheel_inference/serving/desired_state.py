"""The desired state of models: in references, as the registry publishes it, and with their releases."""

from __future__ import annotations

from dataclasses import dataclass, replace

from flywheel_inference.releases.release import ReleaseSpec
from flywheel_inference.routing.route import Variant


@dataclass(frozen=True, slots=True)
class Undecodable:
    """A release that this gateway cannot read, for example of a newer registry. The old route stays."""

    name: str
    cause: str


@dataclass(frozen=True, slots=True)
class Reference:
    """A release without its content. `digest`: SHA-256 of its specification, which never changes."""

    release: str
    digest: str


@dataclass(frozen=True, slots=True)
class RoutedModel:
    """The routing that the registry wants for one model, in references. `message`: the form that is saved."""

    model: str
    generation: int
    champion: Reference | None
    challenger: Reference | None = None
    rollout: str = ""
    shadow_percent: float = 0.0
    challenger_percent: float = 0.0
    warm: tuple[Reference, ...] = ()
    warm_since: tuple[float, ...] = ()
    variants: tuple[Variant[Reference], ...] = ()
    message: bytes = b""

    @property
    def references(self) -> tuple[Reference, ...]:
        """Every release, the most urgent first."""
        found = (self.champion, self.challenger, *(v.release for v in self.variants), *self.warm)
        return tuple(one for one in found if one is not None)


@dataclass(frozen=True, slots=True)
class DesiredChange:
    """Models in their new state, and names of models that nothing serves any more. `snapshot`: `models` are
    all models."""

    models: tuple[RoutedModel, ...] = ()
    removed: tuple[str, ...] = ()
    snapshot: bool = False


@dataclass(frozen=True, slots=True)
class DesiredModel:
    """Routing and releases that the registry wants for one model. `warm` releases are loaded but get no
    traffic; `warm_since` is when each stopped serving, seconds since 1970 UTC."""

    model: str
    generation: int
    champion: ReleaseSpec | Undecodable | None
    challenger: ReleaseSpec | Undecodable | None = None
    rollout: str = ""
    shadow_percent: float = 0.0
    challenger_percent: float = 0.0
    warm: tuple[ReleaseSpec | Undecodable, ...] = ()
    warm_since: tuple[float, ...] = ()
    variants: tuple[Variant[ReleaseSpec | Undecodable], ...] = ()

    def without_warm_before(self, time: float) -> DesiredModel:
        """The model without the warm releases that stopped serving before a time."""
        kept = [pair for pair in zip(self.warm, self.warm_since, strict=False) if pair[1] >= time]
        if len(kept) == len(self.warm_since):
            return self
        return replace(self, warm=tuple(r for r, _ in kept), warm_since=tuple(s for _, s in kept))

    @property
    def releases(self) -> tuple[ReleaseSpec, ...]:
        """Every release to keep loaded, the most urgent first."""
        return tuple(r for r in self._all if isinstance(r, ReleaseSpec))

    @property
    def undecodable(self) -> dict[str, str]:
        """Release → why it cannot be served."""
        return {r.name: r.cause for r in self._all if isinstance(r, Undecodable)}

    @property
    def _all(self) -> tuple[ReleaseSpec | Undecodable | None, ...]:
        return (self.champion, self.challenger, *(v.release for v in self.variants), *self.warm)

    @property
    def active_challenger(self) -> ReleaseSpec | Undecodable | None:
        """The challenger, if it gets canary or shadow traffic."""
        return self.challenger if self.shadow_percent > 0 or self.challenger_percent > 0 else None
