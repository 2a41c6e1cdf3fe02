"""The serving state of this gateway: desired models, tracked releases and applied routes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from flywheel_common.names import Pattern
from flywheel_inference.models.errors import ModelServerDown
from flywheel_inference.releases.release import ReleaseSpec
from flywheel_inference.routing.route import Route
from flywheel_inference.scoring.scorer import ReleaseScorer
from flywheel_inference.serving.applied_routes import AppliedRoutes, apply_desired
from flywheel_inference.serving.desired_state import DesiredModel
from flywheel_inference.serving.errors import ReleaseNotReady, UnknownModel
from flywheel_inference.serving.observed_state import ObservedModel, ServingStatus
from flywheel_inference.serving.tracked_release import TrackedRelease

MODEL_NAME = Pattern("projects/{project}/models/{model}")


class ServingState:
    """Answers `route` on the Predict path. The `Reconciler` changes it; no method waits or does I/O."""

    def __init__(self) -> None:
        self.releases: dict[str, TrackedRelease] = {}
        self.model_server_up = True
        self.boot_wait_over = False
        """A desired state has arrived, or the wait for one is over."""
        self.settled = False
        """Every champion desired at boot is loaded or refused. Never becomes false again."""
        self._desired: dict[str, DesiredModel] = {}
        self._undecodable: Mapping[str, str] = {}
        self._applied = AppliedRoutes()

    # --- read side
    def route(self, model: str) -> Route[ReleaseScorer]:
        """The route applied now. Raises NotFound UNKNOWN_MODEL, Unavailable RELEASE_NOT_READY,
        InvalidArgument."""
        found = self._applied.routes.get(model)
        if found is not None:
            return found
        MODEL_NAME.parse(model)
        desired = self._desired.get(model)
        if desired is not None and desired.champion is not None:
            cause = self._failure(desired.champion.name) or "it is being loaded"
            raise ReleaseNotReady(f"Release {desired.champion.name} is not ready: {cause}", model=model)
        raise UnknownModel(
            f"No release serves {model}: register a version, create a release and start its rollout.",
            model=model,
        )

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
                )
            )
        return found

    def observed(self) -> list[ObservedModel]:
        """The report to the registry."""
        result = []
        for model, desired in self._desired.items():
            names = [spec.name for spec in desired.releases]
            ready = tuple(n for n in names if self.model_server_up and self.releases[n].ready)
            failures = {n: cause for n in names if n not in ready and (cause := self._failure(n))}
            failures |= {n: cause for n, cause in self._undecodable.items() if n.startswith(f"{model}/")}
            result.append(ObservedModel(model, self._applied.generations.get(model, 0), ready, failures))
        return result

    # --- changes
    def accept(self, models: Iterable[DesiredModel], undecodable: Mapping[str, str]) -> None:
        """Replaces the desired state. `undecodable`: release → why it cannot be served."""
        self._desired = {model.model: model for model in models}
        self._undecodable = undecodable
        for spec in self._wanted():
            self.releases.setdefault(spec.name, TrackedRelease(spec))
        self.boot_wait_over = True

    def due_for_loading(self, now: float) -> list[TrackedRelease]:
        """Desired releases to load now, the most urgent of each model first."""
        wanted = [self.releases.setdefault(spec.name, TrackedRelease(spec)) for spec in self._wanted()]
        return list(dict.fromkeys(release for release in wanted if release.due(now)))

    def apply(self) -> dict[str, int] | None:
        """Applies the generations whose releases are ready. Returns the generations by model; None: no
        change."""
        before = self._applied
        self._applied = apply_desired(before, self._desired, self.releases)
        return dict(self._applied.generations) if self._applied.differs_from(before) else None

    def forget_unused(self, in_use: Callable[[ReleaseScorer], bool]) -> list[ReleaseSpec]:
        """Forgets and returns the releases that are not desired, routed, being loaded or still scoring."""
        wanted = {spec.name for spec in self._wanted()}
        routed = {
            scorer.spec.name
            for route in self._applied.routes.values()
            for scorer in (route.champion, route.challenger)
            if scorer is not None
        }
        forgotten = []
        for name, release in list(self.releases.items()):
            if name in wanted or name in routed or release.task is not None:
                continue
            if release.scorer is not None and (not release.scorer.idle or in_use(release.scorer)):
                continue
            forgotten.append(self.releases.pop(name).spec)
        return forgotten

    def settle(self) -> None:
        """Updates `settled`."""
        if not self.settled and self.boot_wait_over:
            champions = [
                self.releases[d.champion.name] for d in self._desired.values() if d.champion is not None
            ]
            self.settled = all(release.ready or release.refused for release in champions)

    def _wanted(self) -> list[ReleaseSpec]:
        return [spec for desired in self._desired.values() for spec in desired.releases]

    def _failure(self, release: str) -> str:
        tracked = self.releases.get(release)
        if tracked is None:
            return self._undecodable.get(release, "")
        if tracked.ready and not self.model_server_up:
            return f"{ModelServerDown.reason}: Triton does not answer."
        return tracked.failure
