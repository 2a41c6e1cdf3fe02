"""A replay of archived events comes in batches that never split the rows of one record."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel_feature.definitions.model import DataType, Field, Source, StreamSource
from flywheel_feature.ingest import archive_replay
from flywheel_feature.ingest.source_rows import SourceRows

SOURCE = Source("p", "events", (Field("at", DataType.TIMESTAMP),), "at", "", StreamSource())


@given(st.lists(st.integers(0, 9), max_size=40), st.integers(1, 7))
def test_batches_hold_whole_records_in_order(offsets: list[int], size: int) -> None:
    offset = np.sort(np.array(offsets, np.int64))
    n = len(offset)
    columns = {"at": (np.arange(n), np.ones(n, bool))}
    rows = SourceRows(SOURCE, 0, columns, [str(i) for i in range(n)], offset, 100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(archive_replay, "APPLIED_EVENTS", size)
        batches = list(archive_replay.cut(rows))
    assert [i for p in batches for i in p.event_ids] == [str(i) for i in range(n)]
    assert [v for p in batches for v in p.columns["at"][0].tolist()] == list(range(n))
    for batch, following in zip(batches, [*batches[1:], None][: len(batches)], strict=True):
        wanted = 100 if following is None else following.offset[0]
        assert batch.next_offset == wanted > batch.offset[-1]
