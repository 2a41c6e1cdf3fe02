"""Encodes GetOnlineFeaturesResponse in columns directly as wire bytes.

Building fifty columns as message objects takes longer than the rest of a lookup. The parts that do not depend
on values (names, types, lengths) are laid out once per plan and row count. Most responses have only values of
fixed width: they are copies of a template into which the values of a whole batch are written. Where texts,
lists or vectors determine the length, a response is joined from pieces. `convert_online.answer_to_proto`
builds the same response from messages; a test compares the two.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from flywheel_common.message_fields import prefix
from flywheel_feature.api.convert_online import applied_table
from flywheel_feature.definitions.model import Field
from flywheel_feature.encoding.row_encoding import DTYPES, is_variable
from flywheel_feature.encoding.wire_columns import to_column
from flywheel_feature.online.read_plan import Answer, ReadPlan
from flywheel_feature.online.view_reads import PRESENT, STALE, wide_features
from flywheel_feature.windows.applied_offsets import AppliedOffsets
from flywheel_protos.feature.v1 import feature_pb2 as pb
from flywheel_protos.types.v1 import column_pb2

LAYOUTS_KEPT = 64
_RESPONSE = pb.GetOnlineFeaturesResponse.DESCRIPTOR.fields_by_name
_TABLE = column_pb2.Table.DESCRIPTOR.fields_by_name
_COLUMN = column_pb2.Column.DESCRIPTOR.fields_by_name


def applied_field(applied: Sequence[AppliedOffsets]) -> bytes:
    """The field applied_offsets of a response."""
    table = applied_table(applied).SerializeToString()
    return prefix(_RESPONSE["applied_offsets"], len(table)) + table


class _Layout:
    """The parts of a response of n rows: constant bytes alternating with places for values.

    `parts` has four entries per feature: the head of its column, a place for its validity, the head of its
    values, and a place for these. A column of variable length uses all four for itself. The statuses and
    event times follow the columns.
    """

    __slots__ = (
        *("bitmap", "event_times", "length", "others", "parts", "row_count", "rows", "statuses", "tail"),
        *("template", "wide", "wide_width"),
    )

    def __init__(self, plan: ReadPlan, rows: int) -> None:
        self.bitmap = (rows + 7) // 8
        self.parts: list[bytes] = []
        self.rows = rows
        self.wide = wide_features(plan.fields)
        """Features whose values take eight bytes."""
        self.others = [i for i in range(len(plan.fields)) if i not in set(self.wide)]
        """All other features; their values are written one feature at a time."""
        self.wide_width = 8 * rows
        for field in plan.fields:
            width = 0 if has_variable_length(field) else rows * DTYPES[field.data_type].itemsize
            data_type = int(field.data_type)
            column = column_pb2.Column(name=field.name, data_type=data_type)  # type: ignore[arg-type]
            head = column.SerializeToString() + prefix(_COLUMN["validity"], self.bitmap)
            between = prefix(_COLUMN["packed"], width)
            length = len(head) + self.bitmap + len(between) + width
            self.parts += (
                prefix(_TABLE["columns"], length) + head,
                bytes(self.bitmap),
                between,
                bytes(width),
            )
        self.row_count = column_pb2.Table(row_count=rows).SerializeToString()
        variable = any(has_variable_length(f) for f in plan.fields)
        self.length = 0 if variable else len(self.row_count) + sum(map(len, self.parts))
        """Bytes of the table; 0 when they depend on the values."""
        self.statuses = prefix(_RESPONSE["statuses"], len(plan.fields) * rows)
        self.event_times = prefix(_RESPONSE["event_times"], len(plan.stored) * rows * 8)
        self.tail = pb.GetOnlineFeaturesResponse(
            view_versions=plan.view_versions, feature_set=plan.feature_set
        ).SerializeToString()
        self.template: _RowTemplate | _ColumnTemplate | None = None
        if not variable:
            one_row = rows == 1 and not self.others
            self.template = _RowTemplate(self, plan) if one_row else _ColumnTemplate(self, plan)
            self.parts.clear()  # the template holds them

    def enclose(self, columns: Sequence[bytes], statuses: bytes, event_times: bytes) -> bytes:
        """The response with these columns."""
        length = self.length or len(self.row_count) + sum(map(len, columns))
        head = prefix(_RESPONSE["features"], length)
        tail = (self.statuses, statuses, self.event_times, event_times, self.tail)
        return b"".join((head, self.row_count, *columns, *tail))


class _RowTemplate:
    """Writes responses of one row that have only eight-byte features.

    They all have one length and each value has a fixed place, so many responses are written at once.
    """

    __slots__ = ("event_times", "length", "statuses", "template", "validity", "values")

    def __init__(self, layout: _Layout, plan: ReadPlan) -> None:
        features, views = len(plan.fields), len(plan.stored)
        response = layout.enclose(layout.parts, bytes(features), bytes(8 * views))
        self.length = len(response)
        self.template = np.frombuffer(response, np.uint8)
        end = self.length - len(layout.tail)
        self.event_times = slice(end - 8 * views, end)
        end -= 8 * views + len(layout.event_times)
        self.statuses = slice(end - features, end)
        end -= features + len(layout.statuses)
        ends = end - sum(map(len, layout.parts)) + np.cumsum([len(p) for p in layout.parts])
        self.validity = ends[1::4] - 1
        self.values = (ends[3::4, None] - 8 + np.arange(8)).ravel()

    def write(self, answer: Answer, parts: int) -> list[bytes]:
        """One response per row; `parts` equals the number of rows."""
        del parts
        statuses = answer.statuses.T
        rows = len(statuses)
        out = np.empty((rows, self.length), np.uint8)
        out[:] = self.template
        out[:, self.validity] = has_value(statuses)
        out[:, self.values] = np.ascontiguousarray(answer.wide.T).view(np.uint8).reshape(rows, -1)
        out[:, self.statuses] = statuses
        times = np.ascontiguousarray(answer.event_times.T)
        out[:, self.event_times] = times.view(np.uint8).reshape(rows, -1)
        flat, length = out.tobytes(), self.length
        return [flat[at : at + length] for at in range(0, rows * length, length)]


class _ColumnTemplate:
    """Writes responses of several rows, or with features of other fixed widths.

    The values of a column are adjacent, so whole columns are written. Columns at equal distances from each
    other, which result from names of equal length, are written together.
    """

    __slots__ = ("event_times", "length", "others", "rows", "runs", "statuses", "template", "validity")

    def __init__(self, layout: _Layout, plan: ReadPlan) -> None:
        features, views, rows = len(plan.fields), len(plan.stored), layout.rows
        columns = layout.parts.copy()
        columns[1::4] = [np.packbits(np.ones(rows, np.bool_), bitorder="little").tobytes()] * features
        response = layout.enclose(columns, bytes([PRESENT]) * features * rows, bytes(8 * views * rows))
        self.rows, self.length = rows, len(response)
        self.template = np.frombuffer(response, np.uint8)
        """A response in which every value is PRESENT; validity and statuses are written only for others."""
        end = self.length - len(layout.tail)
        self.event_times = slice(end - 8 * views * rows, end)
        end -= 8 * views * rows + len(layout.event_times)
        self.statuses = slice(end - features * rows, end)
        end -= features * rows + len(layout.statuses)
        ends = end - sum(map(len, columns)) + np.cumsum([len(c) for c in columns])
        self.validity = (ends[1::4, None] - layout.bitmap + np.arange(layout.bitmap)).ravel()
        starts = ends[2::4].tolist()
        self.others = [
            (i, DTYPES[plan.fields[i].data_type], slice(starts[i], int(ends[4 * i + 3])))
            for i in layout.others
        ]
        self.runs = _runs([starts[i] for i in layout.wide])

    def write(self, answer: Answer, parts: int) -> list[bytes]:
        """`parts` responses of `self.rows` rows each."""
        rows, length = self.rows, self.length
        out = np.empty((parts, length), np.uint8)
        out[:] = self.template
        if not (answer.statuses == PRESENT).all():
            statuses = _by_part(answer.statuses, parts, rows)
            out[:, self.statuses] = statuses.reshape(parts, -1)
            bitmaps = np.packbits(has_value(statuses), axis=2, bitorder="little")
            out[:, self.validity] = bitmaps.reshape(parts, -1)
        wide = answer.wide.T.reshape(parts, rows, -1).transpose(0, 2, 1)
        first = 0
        for start, distance, columns in self.runs:
            place = np.ndarray((parts, columns, rows), "<i8", out, start, (length, distance, 8))
            place[:] = wide[:, first : first + columns]
            first += columns
        for i, dtype, where in self.others:
            values, valid = answer.columns[i]
            packed = np.where(valid, values, values.dtype.type(0)).astype(dtype, copy=False)
            out[:, where] = packed.reshape(parts, rows).view(np.uint8)
        out[:, self.event_times] = _by_part(answer.event_times, parts, rows).view(np.uint8).reshape(parts, -1)
        return [one.tobytes() for one in out]


def _runs(starts: Sequence[int]) -> list[tuple[int, int, int]]:
    """(first, distance, count) of consecutive starts at equal distances, in order."""
    runs: list[tuple[int, int, int]] = []
    for at in starts:
        if runs:
            first, distance, count = runs[-1]
            if count == 1 or at == first + count * distance:
                runs[-1] = first, (at - first) // count, count + 1
                continue
        runs.append((at, 0, 1))
    return runs


def has_value(statuses: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """PRESENT and STALE have a value, the other statuses have none."""
    return (statuses == PRESENT) | (statuses == STALE)


def _by_part(matrix: npt.NDArray[Any], parts: int, rows: int) -> npt.NDArray[Any]:
    """[columns, parts × rows], stored row by row → [parts, columns, rows], the order in messages."""
    return np.ascontiguousarray(matrix.T.reshape(parts, rows, -1).transpose(0, 2, 1))


def has_variable_length(field: Field) -> bool:
    """Whether a column is encoded as a message of its own: texts, lists, vectors."""
    return is_variable(field.data_type) or field.data_type.is_vector


class AnswerEncoder:
    """Encodes the answers of one plan."""

    def __init__(self, plan: ReadPlan) -> None:
        self._plan = plan
        self._layouts: OrderedDict[int, _Layout] = OrderedDict()

    def encode_parts(self, answer: Answer, rows: Sequence[int]) -> list[bytes]:
        """One GetOnlineFeaturesResponse with ANSWER_LAYOUT_COLUMNS per part;

        `rows` has the rows of each part.
        """
        if min(rows) == max(rows):
            return self._equal_parts(answer, len(rows), rows[0])
        parts, low = [], 0
        for count in rows:
            parts += self._equal_parts(answer.rows(low, low + count), 1, count)
            low += count
        return parts

    def encode_applied(self, applied: Sequence[AppliedOffsets]) -> bytes:
        """The field applied_offsets; appended to a response, it becomes part of that message."""
        return applied_field(applied)

    def encode(self, answer: Answer) -> bytes:
        """The answer as one message."""
        (message,) = self.encode_parts(answer, [answer.statuses.shape[1]])
        return message + self.encode_applied(answer.applied) if answer.applied else message

    def _equal_parts(self, answer: Answer, parts: int, rows: int) -> list[bytes]:
        if rows == 0:
            empty = pb.GetOnlineFeaturesResponse(
                view_versions=self._plan.view_versions, feature_set=self._plan.feature_set
            )
            return [empty.SerializeToString()] * parts
        layout = self._layouts.get(rows) or self._lay_out(rows)
        if layout.template is not None:
            return layout.template.write(answer, parts)
        statuses = _by_part(answer.statuses, parts, rows)
        bitmaps = np.packbits(has_value(statuses), axis=2, bitorder="little").reshape(parts, -1)
        wide = _by_part(answer.wide, parts, rows).reshape(parts, -1)
        times = _by_part(answer.event_times, parts, rows)
        return [
            layout.enclose(
                self._columns(layout, answer, i * rows, bitmaps[i].tobytes(), wide[i].tobytes()),
                statuses[i].tobytes(),
                times[i].tobytes(),
            )
            for i in range(parts)
        ]

    def _columns(self, layout: _Layout, answer: Answer, low: int, bitmaps: bytes, wide: bytes) -> list[bytes]:
        width, size = layout.wide_width, layout.bitmap
        values = [wide[at : at + width] for at in range(0, len(wide), width)]
        columns = layout.parts.copy()
        columns[1::4] = [bitmaps[at : at + size] for at in range(0, len(bitmaps), size)]
        for i, value in zip(layout.wide, values, strict=True):
            columns[4 * i + 3] = value
        part = answer.columns.rows(low, low + layout.rows)
        for i in layout.others:
            columns[4 * i : 4 * i + 4] = self._other(i, part[i], columns[4 * i : 4 * i + 4])
        return columns

    def _other(self, i: int, column: tuple[Any, Any], parts: list[bytes]) -> list[bytes]:
        field = self._plan.fields[i]
        values, valid = column
        if has_variable_length(field):
            message = to_column(field, values, valid).SerializeToString()
            return [prefix(_TABLE["columns"], len(message)), message, b"", b""]
        packed = np.where(valid, values, values.dtype.type(0)).astype(DTYPES[field.data_type], copy=False)
        return [*parts[:3], packed.tobytes()]

    def _lay_out(self, rows: int) -> _Layout:
        layout = self._layouts[rows] = _Layout(self._plan, rows)
        if len(self._layouts) > LAYOUTS_KEPT:
            self._layouts.popitem(last=False)
        return layout
