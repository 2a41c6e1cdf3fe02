"""Writing tiles: the change that a batch of events makes to the states of a stream view."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field as default
from typing import Any

import numpy as np
import numpy.typing as npt

from flywheel_common.arrays import Floats, Ints, Mask
from flywheel_feature.windows import hyperloglog
from flywheel_feature.windows.tile_layout import FIRST_EVENT, FORMAT, TileLayout

_INF = float("inf")
Places = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Events:
    """Events of one view, in any order."""

    code: Ints
    """[n] the number of each event's entity."""
    time: Ints
    """[n] event times."""
    known: Ints
    """[n] times at which the events became known."""
    rank: Ints
    """[n] event_order.event_ranks of the ids."""
    values: Mapping[str, tuple[Floats, Mask]]
    """Field → values as float64 and which of them are present. The values of a text field are its lengths."""
    observed: Mapping[str, Ints] = default(default_factory=dict)
    """Field → hyperloglog.observations, for fields of APPROX_DISTINCT."""
    texts: Mapping[str, npt.NDArray[Any]] = default(default_factory=dict)
    """Field → UTF-8 or bytes, for fields whose newest texts are kept."""
    bits: Mapping[str, Floats] = default(default_factory=dict)
    """Field → the 8 bytes of INT64 values viewed as doubles, for fields whose first or newest values are
    kept."""

    def take(self, rows: npt.NDArray[Any]) -> Events:
        """The events at `rows` (places or a mask)."""
        values = {name: (v[rows], m[rows]) for name, (v, m) in self.values.items()}
        observed = {name: o[rows] for name, o in self.observed.items()}
        texts = {name: t[rows] for name, t in self.texts.items()}
        bits = {name: b[rows] for name, b in self.bits.items()}
        times = self.time[rows], self.known[rows]
        return Events(self.code[rows], *times, self.rank[rows], values, observed, texts, bits)

    def kept(self, field: str) -> Floats:
        """The values of a field in the form that FIRST, LAST and LAST_N store."""
        return self.bits[field] if field in self.bits else self.values[field][0]


@dataclass(frozen=True, slots=True)
class Delta:
    """Partial aggregates of one entity's events, to be merged into its state."""

    first: int
    """First event time."""
    newest: int
    """Newest event time."""
    body: bytes
    """Doubles: tiles, count per list and sketch, then tiles, list entries and registers as in a state."""
    texts: bytes = b""


def partials(layout: TileLayout, events: Events) -> dict[int, Delta]:
    """Per entity code the partial aggregates of its events."""
    if not events.code.size:
        return {}
    events = events.take(np.lexsort((events.rank, events.known, events.time, events.code)))
    index = np.floor_divide(events.time, layout.tile)
    is_new_tile = np.ones(index.size, dtype=np.bool_)
    is_new_tile[1:] = (index[1:] != index[:-1]) | (events.code[1:] != events.code[:-1])
    starts = np.flatnonzero(is_new_tile)
    tiles = _tile_rows(layout, events, index, starts)
    codes, first = np.unique(events.code, return_index=True)
    last = np.append(first[1:], events.code.size)
    tile_low = np.searchsorted(starts, first, "left")
    tile_high = np.searchsorted(starts, last, "left")
    entries = [_entries(events, field, keep, first, last) for field, keep in layout.lists.items()]
    entries += [_registers(events, field, index, codes) for field in layout.sketches]
    texts = [_texts(events, f, keep, first, last) for f, keep in layout.lists.items() if f in layout.texts]
    heads = np.empty((codes.size, 1 + layout.sections), "<f8")
    heads[:, 0] = tile_high - tile_low
    for section, own in enumerate(entries, start=1):
        heads[:, section] = [len(e) for e in own]
    # Slicing bytes is cheaper than making an array of the few numbers of one entity.
    head, width = heads.tobytes(), heads.shape[1] * 8
    body, low, high = tiles.tobytes(), tile_low * layout.stride * 8, tile_high * layout.stride * 8
    times = zip(events.time[first].tolist(), events.time[last - 1].tolist(), strict=True)
    cuts = zip(codes.tolist(), low.tolist(), high.tolist(), times, strict=True)
    deltas: dict[int, Delta] = {}
    for i, (code, begin, end, (oldest, newest)) in enumerate(cuts):
        pieces = [head[i * width : (i + 1) * width], body[begin:end], *(e[i].tobytes() for e in entries)]
        deltas[code] = Delta(oldest, newest, b"".join(pieces), b"".join(t[i] for t in texts))
    return deltas


def state_of(layout: TileLayout, delta: Delta, offsets: Mapping[int, int]) -> bytes:
    """The state of an entity whose only events are those of `delta`; `offsets`: partition → next offset."""
    body = np.frombuffer(delta.body, "<f8")
    offsets = {FIRST_EVENT: delta.first, **offsets}
    head = [FORMAT, delta.newest, body[0], len(offsets), *body[1 : 1 + layout.sections]]
    tail = [x for pair in sorted(offsets.items()) for x in pair]
    return b"".join(
        (
            np.array(head, "<f8").tobytes(),
            body[1 + layout.sections :].tobytes(),
            delta.texts,
            bytes(-len(delta.texts) % 8),
            np.array(tail, "<f8").tobytes(),
        )
    )


def _tile_rows(layout: TileLayout, events: Events, index: Ints, starts: Places) -> Floats:
    """[tiles, stride] tiles of sorted events; a tile begins at each of `starts`."""
    rows = np.zeros((starts.size, layout.stride), dtype="<f8")
    rows[:, 0] = index[starts]
    sizes = np.diff(np.append(starts, index.size))
    for (field, name), column in layout.column.items():
        if not field:
            rows[:, column] = sizes
            continue
        values, present = events.values[field]
        zeroed = np.where(present, values, 0.0)
        if name == "n":
            rows[:, column] = np.add.reduceat(present.astype(np.float64), starts)
        elif name == "sum":
            rows[:, column] = np.add.reduceat(zeroed, starts)
        elif name == "m2":
            mean = rows[:, column - 1] / np.maximum(rows[:, column - 2], 1.0)
            deviations = np.where(present, values - np.repeat(mean, sizes), 0.0)
            rows[:, column] = np.add.reduceat(deviations * deviations, starts)
        elif name == "min":
            rows[:, column] = np.minimum.reduceat(np.where(present, values, _INF), starts)
        elif name == "max":
            rows[:, column] = np.maximum.reduceat(np.where(present, values, -_INF), starts)
        else:
            place = np.minimum.reduceat(np.where(present, np.arange(index.size), index.size), starts)
            found = place < index.size
            chosen = place[found]
            rows[:, column] = _INF
            for k, source in enumerate((events.time, events.known, events.rank, events.kept(field))):
                rows[found, column + k] = source[chosen]
    return rows


def _entries(events: Events, field: str, keep: int, first: Places, last: Places) -> list[Floats]:
    """Per entity the newest `keep` entries of a list."""
    present = events.values[field][1]
    stacked = np.stack([events.time, events.known, events.rank, events.kept(field)], axis=1).astype("<f8")
    return [stacked[a:b][present[a:b]][-keep:] for a, b in zip(first.tolist(), last.tolist(), strict=True)]


def _texts(events: Events, field: str, keep: int, first: Places, last: Places) -> list[bytes]:
    """Per entity the texts of the newest `keep` entries of a list, joined."""
    texts, present = events.texts[field], events.values[field][1]
    bounds = zip(first.tolist(), last.tolist(), strict=True)
    return [b"".join(texts[a:b][present[a:b]][-keep:]) for a, b in bounds]


def _registers(events: Events, field: str, index: Ints, codes: Ints) -> list[Floats]:
    """Per entity the highest rank of every register hit, tile by tile."""
    present = events.values[field][1]
    code = events.code[present]
    keys = index[present] * hyperloglog.OBSERVATIONS + events.observed[field][present]
    order = np.lexsort((keys, code))
    code, keys = code[order], keys[order]
    kept = hyperloglog.highest(keys)
    kept[:-1] |= code[1:] != code[:-1]
    code, keys = code[kept], keys[kept]
    ends = np.searchsorted(code, codes, "right")
    return np.split(keys.astype("<f8"), ends[:-1])
