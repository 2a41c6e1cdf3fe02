"""Tombstones: which events and rows of an erased entity are dropped."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from flywheel_feature.definitions.catalog import Catalog
from flywheel_feature.definitions.model import DataType, Entity, Field, ParquetSource, Source, StreamSource
from flywheel_feature.encoding.keys import entity_keys
from flywheel_feature.ingest.tombstones import Tombstone, TombstoneFilter, key_hash, names_entity

PERSON, SHOP = Field("person", DataType.STRING), Field("shop", DataType.INT64)
AT = Field("at", DataType.TIMESTAMP)
PLACE = Entity("p", "place", (PERSON, SHOP))
VISITS = Source("p", "visits", (PERSON, SHOP, AT), "at", "", StreamSource())
TABLE = Source("p", "table", (PERSON, SHOP, AT), "at", "", ParquetSource("s3://bucket/table/"))

ROW = st.tuples(st.sampled_from(["a", "b", None]), st.integers(0, 2), st.integers(0, 30))
ERASED = st.dictionaries(st.tuples(st.sampled_from("ab"), st.integers(0, 2)), st.integers(0, 30), max_size=4)
"""(person, shop) → barrier or time of the erasure."""


def filter_of(tombstones: dict[tuple[str, int], Tombstone]) -> TombstoneFilter:
    held = {}
    for (person, shop), tombstone in tombstones.items():
        (name,) = entity_keys([(DataType.STRING, [person]), (DataType.INT64, [shop])])
        held[key_hash(PLACE, name)] = tombstone
    catalog = Catalog("p", entities={"place": PLACE})
    return TombstoneFilter(lambda _: catalog, lambda _: {"place": held} if held else {})


def columns(rows: list[Any]) -> Any:
    people = np.array([r[0] or "" for r in rows], dtype=object)
    known = np.array([r[0] is not None for r in rows], bool)
    shops = np.array([r[1] for r in rows], np.int64)
    return {"person": (people, known), "shop": (shops, np.ones(len(rows), bool))}


@given(st.lists(ROW, max_size=20), ERASED, st.integers(0, 1))
def test_only_events_below_the_barrier_are_dropped(
    rows: list[Any], erased_at: dict[tuple[str, int], int], partition: int
) -> None:
    offset = np.sort(np.array([r[2] for r in rows], np.int64))
    tombstones = {key: Tombstone(0, {"visits": {0: barrier}}) for key, barrier in erased_at.items()}
    kept = filter_of(tombstones).events(VISITS, partition, offset, columns(rows))
    wanted = [
        not (partition == 0 and (r[0], r[1]) in erased_at and o < erased_at[r[0], r[1]])
        for r, o in zip(rows, offset, strict=True)
    ]
    assert (kept.tolist() if kept is not None else [True] * len(rows)) == wanted


@given(st.lists(ROW, max_size=20), ERASED)
def test_rows_known_before_the_erasure_are_dropped(
    rows: list[Any], erased_at: dict[tuple[str, int], int]
) -> None:
    known = np.array([r[2] for r in rows], np.int64)
    frame = pl.DataFrame(
        {"person": [r[0] for r in rows], "shop": [r[1] for r in rows]},
        schema={"person": pl.String, "shop": pl.Int64},
    )
    kept = filter_of({key: Tombstone(at) for key, at in erased_at.items()}).batch_rows(TABLE, known, frame)
    wanted = [not ((r[0], r[1]) in erased_at and r[2] <= erased_at[r[0], r[1]]) for r in rows]
    assert (kept.tolist() if kept is not None else [True] * len(rows)) == wanted


def test_a_source_names_an_entity_if_it_has_all_its_typed_keys() -> None:
    assert names_entity(VISITS, PLACE)
    other_type = Source("p", "x", (PERSON, Field("shop", DataType.STRING), AT), "at", "", StreamSource())
    assert not names_entity(other_type, PLACE)
    assert not names_entity(Source("p", "x", (PERSON, AT), "at", "", StreamSource()), PLACE)
