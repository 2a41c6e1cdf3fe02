"""Ids of pushed events come from the caller, from a column, or from the id of the push."""

from __future__ import annotations

from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import flywheel as fw
from flywheel_common.errors import InvalidColumn, WrongType

ROWS = {"k": ["a", "a", "b"], "n": [7, 7, 8]}


def ids_of(rows: Any, **given: Any) -> list[str]:
    schema = {"k": fw.STRING}
    return list(fw.Client("p").push_request("events", rows, schema, **given).event_ids)


async def test_a_push_without_ids_leaves_them_to_the_service() -> None:
    assert [] == ids_of(ROWS)
    assert ["x", "y", "z"] == ids_of(ROWS, ids=["x", "y", "z"])


@pytest.mark.parametrize("convert", [dict, pl.DataFrame, pd.DataFrame, pa.table])
async def test_ids_are_read_from_a_column_of_texts_or_integers(convert: Any) -> None:
    assert ["a", "a", "b"] == ids_of(convert(ROWS), ids="k")
    assert ["7", "7", "8"] == ids_of(convert(ROWS), ids="n"), "the column is not in the schema"


async def test_a_dictionary_column_has_its_values_as_ids() -> None:
    rows = pl.DataFrame(ROWS).with_columns(pl.col("k").cast(pl.Categorical))
    assert ["a", "a", "b"] == ids_of(rows, ids="k")


async def test_automatic_ids_are_equal_in_a_retry_and_new_in_another_push() -> None:
    first, again = (ids_of(ROWS, ids="auto", push_id="push-1") for _ in range(2))
    assert ["push-1-0", "push-1-1", "push-1-2"] == first == again
    made = [ids_of(ROWS, ids="auto") for _ in range(2)]
    assert 6 == len({event_id for ids in made for event_id in ids})


@pytest.mark.parametrize(
    ("rows", "error"),
    [
        (ROWS, InvalidColumn),
        ({**ROWS, "id": ["x", None, "z"]}, InvalidColumn),
        ({**ROWS, "id": [1.5, 2.0, 3.0]}, WrongType),
        ({**ROWS, "id": [True, False, True]}, WrongType),
    ],
)
async def test_a_column_that_cannot_be_ids_is_refused(rows: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="'id'"):
        ids_of(rows, ids="id")
