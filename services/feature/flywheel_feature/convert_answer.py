"""GetOnlineFeaturesResponse in columns, written as wire bytes.

Fifty columns as message objects cost more than everything else a lookup does. What does not depend on the values (names, types,
lengths) is laid out once per plan and row count; an answer is then a join of these pieces with slices of a few matrices.
`answer_to_proto` in convert says the same in messages; a test holds the two together.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np

from flywheel_feature.convert import applied_table, to_column
from flywheel_feature.definitions import Field
from flywheel_feature.read_plan import Answer, ReadPlan
from flywheel_feature.row_encoding import DTYPES, is_variable
from flywheel_protos.feature.v1 import feature_pb2 as pb
from flywheel_protos.types.v1 import column_pb2

LAYOUTS_KEPT = 64
_RESPONSE = pb.GetOnlineFeaturesResponse.DESCRIPTOR.fields_by_name
_TABLE = column_pb2.Table.DESCRIPTOR.fields_by_name
_COLUMN = column_pb2.Column.DESCRIPTOR.fields_by_name


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _prefix(field: Any, length: int) -> bytes:
    """Tag and length of a length-delimited field."""
    return varint(field.number << 3 | 2) + varint(length)


class _Layout:
    """The pieces of an answer of n rows: `pieces[i]` goes before the validity, then `between[i]`, then the values."""

    __slots__ = ("between", "bitmap", "event_times", "pieces", "row_count", "statuses", "tail", "widths")

    def __init__(self, plan: ReadPlan, rows: int) -> None:
        self.bitmap = (rows + 7) // 8
        self.pieces: list[bytes] = []
        self.between: list[bytes] = []
        self.widths: list[int] = []
        for field in plan.fields:
            width = 0 if packs_alone(field) else rows * DTYPES[field.data_type].itemsize
            head = column_pb2.Column(name=field.name, data_type=int(field.data_type)).SerializeToString()  # type: ignore[arg-type]
            head += _prefix(_COLUMN["validity"], self.bitmap)
            between = _prefix(_COLUMN["packed"], width)
            length = len(head) + self.bitmap + len(between) + width
            self.pieces.append(_prefix(_TABLE["columns"], length) + head)
            self.between.append(between)
            self.widths.append(width)
        self.row_count = column_pb2.Table(row_count=rows).SerializeToString()
        self.statuses = _prefix(_RESPONSE["statuses"], len(plan.fields) * rows)
        self.event_times = _prefix(_RESPONSE["event_times"], len(plan.stored) * rows * 8)
        self.tail = pb.GetOnlineFeaturesResponse(
            view_versions=plan.view_versions, feature_set=plan.feature_set
        ).SerializeToString()


def _applied(answer: Answer) -> tuple[bytes, ...]:
    if not answer.applied:
        return ()
    table = applied_table(answer.applied).SerializeToString()
    return _prefix(_RESPONSE["applied_offsets"], len(table)), table


def packs_alone(field: Field) -> bool:
    """Whether a column is written as a message of its own: texts, lists, vectors."""
    return is_variable(field.data_type) or field.data_type.is_vector


class AnswerEncoder:
    """Encodes answers of one plan."""

    def __init__(self, plan: ReadPlan) -> None:
        self._plan = plan
        self._layouts: OrderedDict[int, _Layout] = OrderedDict()

    def encode(self, answer: Answer) -> bytes:
        """A serialized GetOnlineFeaturesResponse with ANSWER_LAYOUT_COLUMNS."""
        rows = answer.statuses.shape[1]
        if rows == 0:
            return pb.GetOnlineFeaturesResponse(
                view_versions=self._plan.view_versions, feature_set=self._plan.feature_set
            ).SerializeToString()
        layout = self._layouts.get(rows) or self._lay_out(rows)
        # 1 PRESENT and 4 STALE have a value, 2 NULL and 3 NOT_FOUND have none.
        valid = (answer.statuses == 1) | (answer.statuses == 4)
        bitmaps = np.packbits(valid, axis=1, bitorder="little").tobytes()
        wide = answer.wide.tobytes()
        table = [layout.row_count]
        at = low = 0
        for i, width in enumerate(layout.widths):
            if width == 8 * rows:
                table += (
                    layout.pieces[i],
                    bitmaps[at : at + layout.bitmap],
                    layout.between[i],
                    wide[low : low + width],
                )
                low += width
            else:
                table += self._other(i, answer, layout, bitmaps[at : at + layout.bitmap])
            at += layout.bitmap
        body = b"".join(table)
        return b"".join(
            (
                _prefix(_RESPONSE["features"], len(body)),
                body,
                layout.statuses,
                answer.statuses.tobytes(),
                layout.event_times,
                answer.event_times.tobytes(),
                layout.tail,
                *_applied(answer),
            )
        )

    def _other(self, i: int, answer: Answer, layout: _Layout, bitmap: bytes) -> tuple[bytes, ...]:
        field = self._plan.fields[i]
        values, valid = answer.columns[i]
        if packs_alone(field):
            column = to_column(field, values, valid).SerializeToString()
            return _prefix(_TABLE["columns"], len(column)), column
        packed = np.where(valid, values, values.dtype.type(0)).astype(DTYPES[field.data_type], copy=False)
        return layout.pieces[i], bitmap, layout.between[i], packed.tobytes()

    def _lay_out(self, rows: int) -> _Layout:
        layout = self._layouts[rows] = _Layout(self._plan, rows)
        if len(self._layouts) > LAYOUTS_KEPT:
            self._layouts.popitem(last=False)
        return layout
