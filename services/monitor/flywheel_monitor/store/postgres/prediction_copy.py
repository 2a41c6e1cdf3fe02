"""Rows of the table `prediction` in PostgreSQL's binary COPY format, built without a Python object per value.

A row is u16 number of fields, and for each field i32 length (-1: null) and its big-endian value. Rows whose
texts have the same lengths and whose optional fields are null together have equal structure, and are one
numpy array."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np

from flywheel_common.arrays import Array, Ints
from flywheel_monitor.ingest.batches import PredictionColumns
from flywheel_monitor.store.postgres.answers import stored_outputs
from flywheel_monitor.store.postgres.variants import Variant

COLUMNS = (
    "model_id",
    "prediction_id",
    "shadow_variant",
    "variant_id",
    "event_time",
    "score",
    "decision",
    "failed",
    "source",
    "latency_ms",
    "segment",
    "subject",
    "cost",
    "outputs",
    "partition",
)
_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_END = b"\xff\xff"
_NULL = -1


class _Texts:
    """A column of texts or blobs: `widths` [n] bytes of each."""

    def __init__(self, values: Sequence[str] | Sequence[bytes]) -> None:
        n = len(values)
        blobs = [v.encode() if isinstance(v, str) else v for v in values] if not _ascii(values) else None
        whole = b"".join(blobs) if blobs is not None else "".join(values).encode()  # type: ignore[arg-type]
        self.widths: Ints = np.fromiter(map(len, values if blobs is None else blobs), np.int64, n)
        self._bytes = np.frombuffer(whole, np.uint8)
        self._starts: Ints = np.cumsum(self.widths) - self.widths

    def take(self, rows: Ints, width: int) -> Array:
        """[m] of dtype V<width>: those of these rows, which all have this width."""
        if len(rows) == len(self.widths):
            found = self._bytes
        else:
            found = self._bytes[self._starts[rows][:, None] + np.arange(width)]
        return np.ascontiguousarray(found).reshape(-1).view(f"V{width}")


def _ascii(values: Sequence[str] | Sequence[bytes]) -> bool:
    return not values or (isinstance(values[0], str) and "".join(values).isascii())  # type: ignore[arg-type]


def copy_data(batches: Sequence[PredictionColumns], variants: Sequence[Variant], partition: int) -> bytes:
    """All rows of the batches."""
    parts = (_rows(b, v, partition) for b, v in zip(batches, variants, strict=True))
    return b"".join((_HEADER, *chain.from_iterable(parts), _END))


def _rows(batch: PredictionColumns, variant: Variant, partition: int) -> Iterator[bytes]:
    n = len(batch.ids)
    shadow = variant.id if batch.shadow else 0
    ids, segments, subjects = _Texts(batch.ids), _Texts(batch.segments), _Texts(batch.subjects)
    has_cost = np.isfinite(batch.costs)
    stored = stored_outputs(batch)
    outputs = None if not n or stored[0] is None else _Texts([o or b"" for o in stored])
    shapes = np.stack([ids.widths, segments.widths, subjects.widths, has_cost], axis=1)
    constant = n > 0 and bool((shapes == shapes[0]).all())
    distinct, group = (shapes[:1], np.zeros(n, np.int64)) if constant else _distinct(shapes)
    for k, (id_width, segment_width, subject_width, costed) in enumerate(distinct.tolist()):
        rows = np.arange(n) if constant else np.flatnonzero(group == k)
        output_width = 0 if outputs is None else int(outputs.widths[0])
        yield _packed(
            len(rows),
            (
                (">i4", variant.version.model_id),
                (f"V{id_width}", ids.take(rows, id_width)),
                (">i4", shadow),
                (">i4", variant.id),
                (">i8", batch.event_times[rows]),
                (">f8", batch.scores[rows]),
                ("u1", batch.decisions[rows]),
                ("u1", batch.failed[rows]),
                (">i2", batch.sources[rows]),
                (">f4", batch.latencies_ms[rows]),
                (f"V{segment_width}", segments.take(rows, segment_width) if segment_width else None),
                (f"V{subject_width}", subjects.take(rows, subject_width) if subject_width else None),
                (">f4", batch.costs[rows]) if costed else None,
                None if outputs is None else (f"V{output_width}", outputs.take(rows, output_width)),
                (">i2", partition),
            ),
        )


def _distinct(shapes: Array) -> tuple[Array, Ints]:
    found, group = np.unique(shapes, axis=0, return_inverse=True)
    return found, group.reshape(-1)


def _packed(n: int, fields: Sequence[tuple[str, object] | None]) -> bytes:
    """n rows; a field is (dtype, values), of an empty text (V0, None), or None for null."""
    kinds: list[tuple[str, str]] = [("fields", ">i2")]
    for i, given in enumerate(fields):
        kinds.append((f"length{i}", ">i4"))
        if given is not None and given[1] is not None:
            kinds.append((f"value{i}", given[0]))
    rows = np.empty(n, np.dtype(kinds))
    rows["fields"] = len(fields)
    for i, given in enumerate(fields):
        rows[f"length{i}"] = _NULL if given is None else np.dtype(given[0]).itemsize
        if given is not None and given[1] is not None:
            rows[f"value{i}"] = given[1]
    return rows.tobytes()
