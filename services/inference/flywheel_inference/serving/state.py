"""The serving state of this gateway: desired models, tracked releases and applied routes."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from flywheel_common.names import Pattern
from flywheel_common.signature import OutputSpec
from flywheel_inference.models.errors import ModelServerDown
from flywheel_inference.releases.release import ReleaseSpec
from flywheel_inference.routing.route import Route
from flywheel_inference.scoring.scorer import ReleaseScorer
from flywheel_inference.serving.applied_routes import AppliedRoutes, apply_desired
from flywheel_inference.serving.desired_state import DesiredModel, Undecodable
from flywheel_inference.serving.errors import NoDesiredState, ReleaseNotReady, UnknownModel
from flywheel_inference.serving.observed_state import ObservedModel, ServingStatus
from flywheel_inference.serving.tracked_release import ReleaseKey, TrackedRelease

RECENT_SECONDS = 60.0
"""A release has recent traffic when a request came for it within this time."""
MODEL_NAME = Pattern("projects/{project}/models/{model}")


class ServingState:
    """Answers `route` on the Predict path. The `Reconciler` changes it; no method waits or does I/O."""

    def __init__(self) -> None:
        self.releases: dict[ReleaseKey, TrackedRelease] = {}
        self.model_server_up = True
        self.settled = False
        """Every champion desired at boot is loaded or refused. Never becomes false again."""
        self._desired: dict[str, DesiredModel] | None = None
        """None: neither a saved state nor one of the registry has arrived."""
        self._applied = AppliedRoutes()

    # --- read side
    def route(self, model: str) -> Route[ReleaseScorer]:
        """The route applied now. Raises NotFound UNKNOWN_MODEL, Unavailable RELEASE_NOT_READY,
        NO_DESIRED_STATE, InvalidArgument."""
        found = self._applied.routes.get(model)
        if found is not None:
            return found
        desired = self._desired_of(model)
        if desired.champion is not None:
            cause = self._failure(desired.champion) or "it is being loaded"
            raise ReleaseNotReady(f"Release {desired.champion.name} is not ready: {cause}", model=model)
        if desired.challenger is not None:
            # A caller that has seen the end of the rollout may be faster than this gateway: it tries again.
            raise ReleaseNotReady("The first release of the model is being rolled out.", model=model)
        raise _unknown(model)

    def outputs(self, model: str) -> list[OutputSpec]:
        """Outputs of the model's desired releases, the champion's first; empty when none can be read. Raises
        NotFound UNKNOWN_MODEL, Unavailable NO_DESIRED_STATE, InvalidArgument."""
        return [release.signature.output for release in self._desired_of(model).releases]

    def _desired_of(self, model: str) -> DesiredModel:
        MODEL_NAME.parse(model)
        if self._desired is None:
            raise NoDesiredState("The registry has not answered since this gateway started: try again.")
        desired = self._desired.get(model)
        if desired is None:
            raise _unknown(model)
        return desired

    def statuses(self) -> list[ServingStatus]:
        """What is served, by model."""
        found = []
        for observed in self.observed():
            route = self._applied.routes.get(observed.model)
            found.append(
                ServingStatus(
                    model=observed.model,
                    generation=observed.generation,
                    champion=route.champion.spec.name if route else "",
                    challenger=route.challenger.spec.name if route and route.challenger else "",
                    shadow_percent=route.shadow_percent if route else 0.0,
                    challenger_percent=route.challenger_percent if route else 0.0,
                    ready_releases=observed.ready_releases,
                    failures=observed.failures,
                    variants=tuple(
                        variant.with_release(variant.release.spec.name)
                        for variant in (route.variants if route else ())
                    ),
                )
            )
        return found

    def observed(self) -> list[ObservedModel]:
        """The report to the registry."""
        result = []
        for model, desired in (self._desired or {}).items():
            specs = desired.releases
            ready = tuple(s.name for s in specs if self.model_server_up and self.releases[s.key].ready)
            failures = desired.undecodable
            for spec in specs:
                if spec.name not in ready and (cause := self._failure(spec)):
                    failures[spec.name] = cause
            result.append(ObservedModel(model, self._applied.generations.get(model, 0), ready, failures))
        return result

    # --- changes
    def accept(self, models: Iterable[DesiredModel]) -> None:
        """Replaces the desired state."""
        self._desired = {model.model: model for model in models}
        for spec in self._wanted():
            self.releases.setdefault(spec.key, TrackedRelease(spec))

    def drop_warm(self, before: float) -> None:
        """Wants warm releases no longer that stopped serving before a time, seconds since 1970 UTC."""
        for name, model in (self._desired or {}).items():
            if model.warm_since and min(model.warm_since) < before:
                self._desired = {**(self._desired or {}), name: model.without_warm_before(before)}

    def due_for_loading(self, now: float, at_once: int) -> list[TrackedRelease]:
        """Desired and routed releases to load now, so that at most `at_once` are being loaded: champions
        first, of these the ones that were asked last, then challengers, then warm releases. While releases
        with recent traffic are loaded, the others get a single place, because loads share the processors of
        Triton."""
        urgency: dict[ReleaseKey, int] = {}
        for desired in (self._desired or {}).values():
            for rank, spec in enumerate(desired.releases):
                self.releases.setdefault(spec.key, TrackedRelease(spec))
                urgency[spec.key] = min(rank, urgency.get(spec.key, rank))
        # An old champion serves until its successor is ready, and Triton may lose it.
        urgency |= dict.fromkeys(self._routed(), 0)
        due = [self.releases[key] for key in urgency if self.releases[key].due(now)]
        due.sort(key=lambda release: (urgency[release.spec.key], -release.last_asked))
        loading = [release for release in self.releases.values() if release.task is not None]
        places = max(0, at_once - len(loading))
        busy = [release for release in due if release.last_asked > now - RECENT_SECONDS]
        quiet = [release for release in due if release.last_asked <= now - RECENT_SECONDS]
        recent_loading = [r for r in loading if r.last_asked > now - RECENT_SECONDS and not r.ready]
        if busy or recent_loading:
            quiet = quiet[: max(0, 1 - (len(loading) - len(recent_loading)))]
        return [*busy, *quiet][:places]

    def apply(self) -> dict[str, int] | None:
        """Applies the generations whose releases are ready. Returns the generations by model; None: no
        change."""
        before = self._applied
        self._applied = apply_desired(before, self._desired or {}, self.releases)
        return dict(self._applied.generations) if self._applied.differs_from(before) else None

    def forget_unused(self, in_use: Callable[[ReleaseScorer], bool]) -> list[ReleaseSpec]:
        """Forgets and returns the releases that are not desired, routed, being loaded or still scoring."""
        kept = {spec.key for spec in self._wanted()} | self._routed()
        forgotten = []
        for key, release in list(self.releases.items()):
            if key in kept or release.task is not None:
                continue
            if release.scorer is not None and (not release.scorer.idle or in_use(release.scorer)):
                continue
            forgotten.append(self.releases.pop(key).spec)
        return forgotten

    def settle(self) -> None:
        """Updates `settled`."""
        if not self.settled and self._desired is not None:
            champions = [
                self.releases[model.champion.key]
                for model in self._desired.values()
                if isinstance(model.champion, ReleaseSpec)
            ]
            self.settled = all(release.ready or release.refused for release in champions)

    def _wanted(self) -> list[ReleaseSpec]:
        return [spec for desired in (self._desired or {}).values() for spec in desired.releases]

    def _routed(self) -> set[ReleaseKey]:
        return {scorer.spec.key for route in self._applied.routes.values() for scorer in route.releases}

    def _failure(self, release: ReleaseSpec | Undecodable) -> str:
        if isinstance(release, Undecodable):
            return release.cause
        tracked = self.releases[release.key]
        if tracked.ready and not self.model_server_up:
            return f"{ModelServerDown.reason}: Triton does not answer."
        return tracked.failure


def _unknown(model: str) -> UnknownModel:
    return UnknownModel(
        f"No release serves {model}: register a version, create a release and start its rollout.", model=model
    )
