"""GetOnlineFeaturesResponse in columns, written as wire bytes.

Fifty columns as message objects cost more than everything else a lookup does. What does not depend on the values (names, types,
lengths) is laid out once per plan and row count. Answers of fixed-width values, the usual ones, are a template into which the values
of a whole batch are written; where texts, lists or vectors decide the length, an answer is a join of the pieces.
`answer_to_proto` in convert says the same in messages; a test holds the two together.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

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
    """What an answer of n rows is made of: an alternation of constant bytes and of places for values.

    `parts` holds, per feature, the head of its column, a place for its validity, the head of its values and a place for these; a
    column that packs alone takes all four. Around them: `before` and, after the columns, the statuses and event times.
    """

    __slots__ = (
        "bitmap", "event_times", "length", "others", "parts", "row_count", "rows", "statuses", "tail", "template", "wide", "wide_width",
    )  # fmt: skip

    def __init__(self, plan: ReadPlan, rows: int) -> None:
        self.bitmap = (rows + 7) // 8
        self.parts: list[bytes] = []
        self.rows = rows
        self.wide = wide_features(plan.fields)
        """Features of eight bytes; the others' values come one by one."""
        self.others = [i for i in range(len(plan.fields)) if i not in set(self.wide)]
        self.wide_width = 8 * rows
        for field in plan.fields:
            width = 0 if packs_alone(field) else rows * DTYPES[field.data_type].itemsize
            head = column_pb2.Column(name=field.name, data_type=int(field.data_type)).SerializeToString()  # type: ignore[arg-type]
            head += _prefix(_COLUMN["validity"], self.bitmap)
            between = _prefix(_COLUMN["packed"], width)
            length = len(head) + self.bitmap + len(between) + width
            self.parts += (
                _prefix(_TABLE["columns"], length) + head,
                bytes(self.bitmap),
                between,
                bytes(width),
            )
        self.row_count = column_pb2.Table(row_count=rows).SerializeToString()
        alone = any(packs_alone(f) for f in plan.fields)
        self.length = 0 if alone else len(self.row_count) + sum(map(len, self.parts))
        """Bytes of the table; 0 when they depend on the values."""
        self.statuses = _prefix(_RESPONSE["statuses"], len(plan.fields) * rows)
        self.event_times = _prefix(_RESPONSE["event_times"], len(plan.stored) * rows * 8)
        self.tail = pb.GetOnlineFeaturesResponse(
            view_versions=plan.view_versions, feature_set=plan.feature_set
        ).SerializeToString()
        self.template: _Single | _Several | None = None
        if not alone:
            self.template = _Single(self, plan) if rows == 1 and not self.others else _Several(self, plan)
            self.parts.clear()  # the template holds them

    def enclose(self, columns: Sequence[bytes], statuses: bytes, event_times: bytes) -> bytes:
        length = self.length or len(self.row_count) + sum(map(len, columns))
        return b"".join(
            (
                _prefix(_RESPONSE["features"], length), self.row_count, *columns, self.statuses, statuses, self.event_times,
                event_times, self.tail,
            )
        )  # fmt: skip


class _Single:
    """Answers of one row and eight-byte features alone all have one length, and every value its place: many are written at once."""

    __slots__ = ("event_times", "length", "statuses", "template", "validity", "values")

    def __init__(self, layout: _Layout, plan: ReadPlan) -> None:
        features, views = len(plan.fields), len(plan.stored)
        whole = layout.enclose(layout.parts, bytes(features), bytes(8 * views))
        self.length = len(whole)
        self.template = np.frombuffer(whole, np.uint8)
        end = self.length - len(layout.tail)
        self.event_times = slice(end - 8 * views, end)
        end -= 8 * views + len(layout.event_times)
        self.statuses = slice(end - features, end)
        end -= features + len(layout.statuses)
        ends = end - sum(map(len, layout.parts)) + np.cumsum([len(p) for p in layout.parts])
        self.validity = ends[1::4] - 1
        self.values = (ends[3::4, None] - 8 + np.arange(8)).ravel()

    def write(self, answer: Answer, parts: int) -> list[bytes]:
        del parts  # as many as rows
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


class _Several:
    """The same for answers of several rows, or with features of other widths. Whole columns are written, because a column's values lie side
    by side; columns at one distance from one another, as names of one length make them, are written together."""

    __slots__ = ("event_times", "length", "others", "rows", "runs", "statuses", "template", "validity")

    def __init__(self, layout: _Layout, plan: ReadPlan) -> None:
        features, views, rows = len(plan.fields), len(plan.stored), layout.rows
        columns = layout.parts.copy()
        columns[1::4] = [np.packbits(np.ones(rows, np.bool_), bitorder="little").tobytes()] * features
        whole = layout.enclose(columns, bytes([PRESENT]) * features * rows, bytes(8 * views * rows))
        self.rows, self.length = rows, len(whole)
        self.template = np.frombuffer(whole, np.uint8)
        """Every value is there: validity and statuses are written where that is not so."""
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
    """(first, distance, how many) of what follows one another at one distance, all together in the order given."""
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
    """PRESENT and STALE have a value, NULL and NOT_FOUND have none."""
    return (statuses == PRESENT) | (statuses == STALE)


def _by_part(matrix: npt.NDArray[Any], parts: int, rows: int) -> npt.NDArray[Any]:
    """[columns, parts × rows] whose memory lies row by row → [parts, columns, rows], as messages want it."""
    return np.ascontiguousarray(matrix.T.reshape(parts, rows, -1).transpose(0, 2, 1))


def packs_alone(field: Field) -> bool:
    """Whether a column is written as a message of its own: texts, lists, vectors."""
    return is_variable(field.data_type) or field.data_type.is_vector


class AnswerEncoder:
    """Encodes answers of one plan."""

    def __init__(self, plan: ReadPlan) -> None:
        self._plan = plan
        self._layouts: OrderedDict[int, _Layout] = OrderedDict()

    def encode_parts(self, answer: Answer, rows: Sequence[int]) -> list[bytes]:
        """One GetOnlineFeaturesResponse with ANSWER_LAYOUT_COLUMNS for each part of so many rows."""
        if min(rows) == max(rows):
            return self._equal_parts(answer, len(rows), rows[0])
        parts, low = [], 0
        for count in rows:
            parts += self._equal_parts(answer.rows(low, low + count), 1, count)
            low += count
        return parts

    def encode_applied(self, applied: Sequence[AppliedOffsets]) -> bytes:
        """The field applied_offsets: behind a message it is part of it."""
        table = applied_table(applied).SerializeToString()
        return _prefix(_RESPONSE["applied_offsets"], len(table)) + table

    def encode(self, answer: Answer) -> bytes:
        """The whole answer as one message."""
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
        if packs_alone(field):
            message = to_column(field, values, valid).SerializeToString()
            return [_prefix(_TABLE["columns"], len(message)), message, b"", b""]
        packed = np.where(valid, values, values.dtype.type(0)).astype(DTYPES[field.data_type], copy=False)
        return [*parts[:3], packed.tobytes()]

    def _lay_out(self, rows: int) -> _Layout:
        layout = self._layouts[rows] = _Layout(self._plan, rows)
        if len(self._layouts) > LAYOUTS_KEPT:
            self._layouts.popitem(last=False)
        return layout
