"""What this gateway serves under the addresses of the protocol."""

from __future__ import annotations

from dataclasses import dataclass

from flywheel_common.errors import FlywheelError
from flywheel_inference.open_inference.address import Address
from flywheel_inference.open_inference.errors import VersionNotLoaded
from flywheel_inference.releases.release import ReleaseSpec
from flywheel_inference.routing.route import Route
from flywheel_inference.scoring.scorer import ReleaseScorer
from flywheel_inference.serving.state import ServingState


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """A released model (empty `version`) or a model version. `reason`: why it is not ready."""

    model: str
    version: str
    ready: bool
    reason: str


class Served:
    """Reads the serving state."""

    def __init__(self, state: ServingState) -> None:
        self._state = state

    def route(self, model: str) -> Route[ReleaseScorer]:
        """Raises as `ServingState.route`."""
        return self._state.route(model)

    def version(self, model_version: str) -> ReleaseSpec:
        """A release of the version, which is loaded. Raises VersionNotLoaded."""
        for release in self._state.releases.values():
            if release.ready and release.spec.model_version == model_version:
                return release.spec
        raise VersionNotLoaded(f"This gateway has not loaded {model_version}.", model_version=model_version)

    def ready(self, at: Address) -> bool:
        """Whether a request to the address gets an answer of the model now."""
        try:
            if at.model_version:
                self.version(at.model_version)
                return self._state.model_server_up
            return self._state.route(at.model).champion.ready and self._state.model_server_up
        except FlywheelError:
            return False

    def versions(self, model: str) -> list[str]:
        """Numbers of the loaded versions of a model."""
        return [
            entry.version for entry in self.index() if entry.model == model and entry.version and entry.ready
        ]

    def index(self) -> list[IndexEntry]:
        """The desired models, then the versions that are or should be loaded, by name and number."""
        entries = []
        for status in self._state.statuses():
            ready = self.ready(Address(status.model))
            reason = "" if ready else "; ".join(sorted(status.failures.values())) or "it is being loaded"
            entries.append(IndexEntry(status.model, "", ready, reason))
        versions: dict[tuple[str, int], IndexEntry] = {}
        for release in self._state.releases.values():
            at = Address(release.spec.model, release.spec.model_version)
            ready = release.ready and self._state.model_server_up
            key = at.model, int(at.version)
            if key not in versions or ready:
                reason = "" if ready else release.failure or "it is being loaded"
                versions[key] = IndexEntry(at.model, at.version, ready, reason)
        return sorted(entries, key=lambda e: e.model) + [versions[key] for key in sorted(versions)]
