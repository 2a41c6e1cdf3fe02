"""The ports to ONNX Runtime and to the feature service, which the check of a version needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from flywheel_registry.artifacts.graph import Feature, GraphReport
from flywheel_registry.models.version import ModelVersion


class GraphRunner(Protocol):
    """Loads model files and runs them on golden rows.

    A file is never loaded in the registry's process: it may be hostile. Memory, CPU and wall time are
    bounded, and so is the number of files that are loaded at once. A file that exceeds a bound or ends its
    process is a problem of the report. Raises Unavailable when the bytes cannot be read, DataLoss when they
    are not the declared ones.
    """

    async def run(self, version: ModelVersion) -> GraphReport:
        """Load the version's model file and run it on its golden rows."""
        ...


class FeatureSets(Protocol):
    """The feature sets of the feature service. Raises Unavailable."""

    async def features(self, feature_set: str) -> Mapping[str, Feature] | None:
        """Return the features of a set by their names as model inputs; None when there is no such set."""
        ...
