"""Online features as one float32 matrix."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flywheel_protos.feature.v1 import feature_pb2


@dataclass(frozen=True, slots=True)
class OnlineMatrix:
    """The numeric features of several entities (`feature.v1.FeatureTensor` describes the rounding).

    `names`: one per feature. `values` [rows, elements]: a vector takes its size, every other feature one
    element; NaN unless the status is PRESENT. `statuses` [features, rows]: numbers of FeatureStatus.
    """

    names: tuple[str, ...]
    values: npt.NDArray[np.float32]
    statuses: npt.NDArray[np.uint8]

    @classmethod
    def of(cls, response: feature_pb2.GetOnlineFeaturesResponse) -> OnlineMatrix:
        """The matrix of a response with ANSWER_LAYOUT_TENSOR; its arrays are views of the response."""
        tensor = response.tensor
        elements = sum(field.vector_size or 1 for field in tensor.schema)
        return cls(
            tuple(field.name for field in tensor.schema),
            np.frombuffer(tensor.values, "<f4").reshape(tensor.row_count, elements),
            np.frombuffer(response.statuses, np.uint8).reshape(len(tensor.schema), tensor.row_count),
        )
