"""Encodes GetOnlineFeaturesResponse with the features as one float32 matrix (ANSWER_LAYOUT_TENSOR)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from flywheel_common.errors import WrongType
from flywheel_common.message_fields import prefix
from flywheel_feature.api.answer_encoding import applied_field
from flywheel_feature.api.convert_definitions import field_to_proto
from flywheel_feature.definitions.model import DataType, Field
from flywheel_feature.online.read_plan import Answer, ReadPlan
from flywheel_feature.online.view_reads import PRESENT
from flywheel_feature.windows.applied_offsets import AppliedOffsets
from flywheel_protos.feature.v1 import feature_pb2 as pb
from flywheel_protos.feature.v1 import feature_tensor_pb2

NUMERIC = frozenset({DataType.BOOL, DataType.INT64, DataType.FLOAT32, DataType.FLOAT64})
"""Types that become one element of a row, and, except BOOL and INT64, the elements of vectors."""
_EIGHT_BYTES = {DataType.FLOAT64: np.dtype("<f8"), DataType.INT64: np.dtype("<i8")}
_RESPONSE = pb.GetOnlineFeaturesResponse.DESCRIPTOR.fields_by_name
_TENSOR = feature_tensor_pb2.FeatureTensor.DESCRIPTOR.fields_by_name


class TensorEncoder:
    """Encodes the answers of one plan. Raises WrongType for a plan with a feature that is not numeric."""

    def __init__(self, plan: ReadPlan) -> None:
        for field in plan.fields:
            _check(field)
        self._features = len(plan.fields)
        widths = [field.vector_size if field.data_type.is_vector else 1 for field in plan.fields]
        ends = np.cumsum(widths).tolist()
        self._elements = ends[-1]
        wide = [i for i, field in enumerate(plan.fields) if field.data_type in _EIGHT_BYTES]
        self._wide: list[tuple[np.dtype[Any], npt.NDArray[np.intp], npt.NDArray[np.intp]]] = []
        """Per type of eight bytes: the places of its features in `Answer.wide`, and their elements."""
        for data_type, dtype in _EIGHT_BYTES.items():
            found = [(at, ends[i] - 1) for at, i in enumerate(wide) if plan.fields[i].data_type == data_type]
            if found:
                places, elements = np.array(found, np.intp).T
                self._wide.append((dtype, places, elements))
        self._others: list[tuple[int, int | slice]] = [
            (i, slice(ends[i] - widths[i], ends[i]) if field.data_type.is_vector else ends[i] - 1)
            for i, field in enumerate(plan.fields)
            if field.data_type not in _EIGHT_BYTES
        ]
        """The other features and their elements."""
        self._feature_of = None if self._elements == self._features else np.repeat(range(len(widths)), widths)
        """The feature of each element; None without vectors."""
        self._schema = feature_tensor_pb2.FeatureTensor(
            schema=[field_to_proto(field) for field in plan.fields]
        ).SerializeToString()
        self._tail = pb.GetOnlineFeaturesResponse(
            view_versions=plan.view_versions, feature_set=plan.feature_set
        ).SerializeToString()

    def encode_parts(self, answer: Answer, rows: Sequence[int]) -> list[bytes]:
        """One response per part; `rows` has the rows of each part."""
        matrix = self._matrix(answer)
        statuses, event_times = answer.statuses, answer.event_times.astype("<i8", copy=False)
        heads: dict[int, tuple[bytes, bytes, bytes]] = {}
        parts, low = [], 0
        for count in rows:
            if count not in heads:
                heads[count] = self._heads(count, len(event_times))
            head, before_statuses, before_times = heads[count]
            high = low + count
            parts.append(
                b"".join(
                    (
                        head,
                        matrix[low:high].tobytes(),
                        before_statuses,
                        statuses[:, low:high].tobytes(),
                        before_times,
                        event_times[:, low:high].tobytes(),
                        self._tail,
                    )
                )
            )
            low = high
        return parts

    def encode_applied(self, applied: Sequence[AppliedOffsets]) -> bytes:
        """The field applied_offsets; appended to a response, it becomes part of that message."""
        return applied_field(applied)

    def _matrix(self, answer: Answer) -> npt.NDArray[np.float32]:
        """[rows, elements]; NaN where a value is not PRESENT."""
        statuses = answer.statuses.T
        matrix = np.empty((len(statuses), self._elements), "<f4")
        with np.errstate(over="ignore"):
            if self._wide:
                bits = np.ascontiguousarray(answer.wide.T)
                for dtype, places, elements in self._wide:
                    matrix[:, elements] = bits.view(dtype)[:, places]
            for i, place in self._others:
                matrix[:, place] = answer.columns[i][0]
        absent = statuses != PRESENT
        if absent.any():
            matrix[absent if self._feature_of is None else absent[:, self._feature_of]] = np.nan
        return matrix

    def _heads(self, rows: int, views: int) -> tuple[bytes, bytes, bytes]:
        """The constant bytes before the values, the statuses and the event times."""
        count = feature_tensor_pb2.FeatureTensor(row_count=rows).SerializeToString()
        size = 4 * rows * self._elements
        start = count + self._schema + prefix(_TENSOR["values"], size)
        return (
            prefix(_RESPONSE["tensor"], len(start) + size) + start,
            prefix(_RESPONSE["statuses"], rows * self._features),
            prefix(_RESPONSE["event_times"], 8 * rows * views),
        )


def _check(field: Field) -> None:
    if field.data_type in NUMERIC or field.data_type.is_vector:
        return
    raise WrongType(
        f"Feature {field.name!r} is {field.data_type.name}: the TENSOR layout has only BOOL, INT64, FLOAT32, "
        "FLOAT64 and vectors. Use COLUMNS, or name other features.",
        column=field.name,
        expected="BOOL, INT64, FLOAT32, FLOAT64 or a vector",
    )
