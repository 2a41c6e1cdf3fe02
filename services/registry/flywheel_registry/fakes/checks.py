"""Model files and feature sets in memory."""

from __future__ import annotations

from collections.abc import Mapping

from flywheel_common.errors import Unavailable
from flywheel_common.signature import FLOAT32, TENSOR_TYPES
from flywheel_common.tensors import array_of
from flywheel_registry.artifacts.graph import Feature, GraphReport, GraphTensor
from flywheel_registry.models.declaration import output_shapes
from flywheel_registry.models.version import ModelVersion


class MemoryGraphs:
    """`GraphRunner` in which every file is the graph of its version's signature and answers its golden rows.

    `reports` overrides the report of a file by its digest.
    """

    def __init__(self) -> None:
        self.reports: dict[str, GraphReport] = {}

    async def run(self, version: ModelVersion) -> GraphReport:
        for artifact in version.artifacts:
            if artifact.sha256 in self.reports:
                return self.reports[artifact.sha256]
        signature, golden = version.signature, version.golden_rows
        return GraphReport(
            inputs=[
                GraphTensor(t.name, TENSOR_TYPES[t.data_type], (None, *t.shape))
                for t in signature.input_tensors
            ],
            outputs=[
                GraphTensor(
                    signature.output.tensor,
                    TENSOR_TYPES[FLOAT32],
                    (None, *output_shapes(signature.output, 0)[0][1:]),
                )
            ],
            output=array_of(golden.output) if golden.output is not None else None,
        )


class MemoryFeatureSets:
    """`FeatureSets` that a test fills: feature set → features. `down`: every call raises Unavailable.

    `every` are the features of each set that is not in `sets`; None: there is no such set.
    """

    def __init__(self, every: Mapping[str, Feature] | None = None) -> None:
        self.sets: dict[str, Mapping[str, Feature]] = {}
        self.every = every
        self.down = False

    async def features(self, feature_set: str) -> Mapping[str, Feature] | None:
        if self.down:
            raise Unavailable("The feature service does not answer.")
        return self.sets.get(feature_set, self.every)
