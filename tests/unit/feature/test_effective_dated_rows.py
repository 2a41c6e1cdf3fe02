"""Rows of batch views that become valid later are kept, not served before their time, and then picked up."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel_common.errors import EventTimeOutOfRange
from flywheel_feature.fakes.online import MemoryOnlineStore
from flywheel_feature.ingest.materialize_view import BATCH_ROWS
from flywheel_feature.jobs.runner import JobCancelled
from flywheel_feature.online.view_reads import NOT_FOUND, NOT_YET_VALID, NULL, PRESENT, STALE
from flywheel_feature.tables.ports import SeenFile
from tests.support.builders.batch_view import URI, BatchViewLab, Row
from tests.support.builders.feature_units import at, microseconds
from tests.support.builders.jobs import RecordingJob

MONTH = 30 * 24 * 60


def micros(minute: int) -> int:
    return int(microseconds([minute])[0])


async def test_a_row_that_is_valid_next_month_is_served_next_month() -> None:
    lab = BatchViewLab(minute=60)
    lab.write("1", ("K", 0, None, 1.0), ("K", 60 + MONTH, None, 2.0), ("F", 60 + MONTH, None, 9.0))
    done = await lab.materialize()
    assert (3, 1, 2) == (done.read, done.written, done.later)
    assert [(PRESENT, 1.0), (NOT_FOUND, None)] == await lab.read(["K", "F"])
    lab.write("2", ("K", 59, None, 3.0))
    done = await lab.materialize()
    assert (1, 1, 0) == (done.read, done.written, done.later)
    assert [(PRESENT, 3.0), (NOT_FOUND, None)] == await lab.read(["K", "F"])
    assert 0 == await lab.pick_up()
    lab.clock.advance(MONTH * 60 - 1)
    assert 0 == await lab.pick_up()
    assert [(PRESENT, 3.0)] == await lab.read(["K"])
    lab.clock.advance(1)
    assert 3 == await lab.pick_up()
    assert [(PRESENT, 2.0), (PRESENT, 9.0)] == await lab.read(["K", "F"])
    assert 0 == await lab.pick_up()
    assert 0 == (await lab.materialize()).read, "no file is read again"


async def test_a_row_is_valid_from_the_later_of_event_and_created_time() -> None:
    lab = BatchViewLab(created=True, minute=10)
    lab.write("1", ("K", 1, 1, 1.0), ("K", 2, 30, 2.0), ("K", 20, 3, 3.0))
    assert 2 == (await lab.materialize()).later
    assert [(PRESENT, 1.0)] == await lab.read(["K"])
    lab.clock.advance(10 * 60)
    assert 3 == await lab.pick_up()
    assert [(PRESENT, 3.0)] == await lab.read(["K"])
    lab.clock.advance(10 * 60)
    # The row that becomes known now has an older event time.
    assert 3 == await lab.pick_up()
    assert [(PRESENT, 3.0)] == await lab.read(["K"])


async def test_an_incremental_run_also_writes_rows_that_have_become_valid() -> None:
    lab = BatchViewLab()
    lab.write("1", ("K", 10, None, 1.0), ("K", 20, None, 2.0))
    await lab.materialize()
    lab.clock.advance(10 * 60)
    done = await lab.materialize()
    assert (2, 1, 1) == (done.read, done.written, done.later)
    assert [(PRESENT, 1.0)] == await lab.read(["K"])
    assert 0 == await lab.pick_up()


async def test_an_end_in_the_future_skips_nothing() -> None:
    lab = BatchViewLab(minute=5)
    lab.write("1", ("K", 0, None, 1.0), ("K", 10, None, 2.0), ("K", 30, None, 3.0))
    await lab.materialize(end=at(20))
    assert [(PRESENT, 1.0)] == await lab.read(["K"])
    lab.write("2", ("L", 25, None, 4.0))
    lab.clock.advance(10 * 60)
    await lab.pick_up()
    assert [(PRESENT, 2.0)] == await lab.read(["K"])
    await lab.materialize()
    lab.clock.advance(20 * 60)
    await lab.pick_up()
    assert [(PRESENT, 3.0), (PRESENT, 4.0)] == await lab.read(["K", "L"])


async def test_rows_of_a_range_in_the_future_are_picked_up() -> None:
    lab = BatchViewLab(minute=5)
    lab.write("1", ("K", 0, None, 1.0), ("L", 6, None, 2.0), ("M", 30, None, 3.0))
    await lab.materialize(start=at(6), end=at(20))
    assert [(NOT_FOUND, None)] * 3 == await lab.read(["K", "L", "M"])
    lab.clock.advance(60)
    assert 3 == await lab.pick_up()
    # Rows before the range are not written, and the file still counts as unread.
    assert [(NOT_FOUND, None), (PRESENT, 2.0), (NOT_FOUND, None)] == await lab.read(["K", "L", "M"])
    assert 3 == (await lab.materialize()).read
    assert [(PRESENT, 1.0)] == await lab.read(["K"])


async def test_pushed_rows_that_are_valid_later_do_not_replace_current_ones() -> None:
    lab = BatchViewLab()
    await lab.push(("P", MONTH, None, 2.0), ("Q", 0, None, 5.0))
    await lab.push(("P", 0, None, 3.0))
    assert [(PRESENT, 3.0), (PRESENT, 5.0)] == await lab.read(["P", "Q"])
    assert [3.0, 5.0] == await lab.offline(["P", "Q"], [1, 1])
    lab.clock.advance(MONTH * 60)
    assert 2 == await lab.pick_up(), "only the file with the later row is read"
    assert [(PRESENT, 2.0), (PRESENT, 5.0)] == await lab.read(["P", "Q"])


async def test_a_push_within_the_clock_skew_counts_as_current() -> None:
    lab = BatchViewLab()
    await lab.push(("P", 5, None, 2.0))
    assert [(PRESENT, 2.0)] == await lab.read(["P"])
    assert [(NOT_YET_VALID, None)] == await lab.read(["P"], 4)


async def test_a_later_row_that_is_not_stored_offline_is_refused() -> None:
    lab = BatchViewLab()
    with pytest.raises(EventTimeOutOfRange, match="of row 1 "):
        await lab.push(("P", 0, None, 1.0), ("P", 6, None, 2.0), offline=False)
    assert [(NOT_FOUND, None)] == await lab.read(["P"]), "nothing is written"


async def test_rows_pushed_offline_only_wait_for_the_next_materialization() -> None:
    lab = BatchViewLab()
    await lab.push(("P", 0, None, 1.0), ("P", 10, None, 2.0), online=False)
    lab.clock.advance(600)
    assert 0 == await lab.pick_up()
    await lab.materialize()
    assert [(PRESENT, 2.0)] == await lab.read(["P"])


async def test_later_rows_of_a_rewritten_file_are_found_in_the_new_contents() -> None:
    lab = BatchViewLab()
    lab.write("1", ("K", 10, None, 1.0))
    await lab.materialize()
    lab.write("1", ("K", 10, None, 2.0), ("L", 0, None, 3.0))
    lab.clock.advance(600)
    assert 2 == await lab.pick_up()
    # Only rows that have become valid are written: the others wait for an incremental run.
    assert [(PRESENT, 2.0), (NOT_FOUND, None)] == await lab.read(["K", "L"])
    await lab.materialize()
    assert [(PRESENT, 3.0)] == await lab.read(["L"])


async def test_a_later_row_survives_the_replacement_of_its_file() -> None:
    lab = BatchViewLab()
    lab.write("1", ("K", 10, None, 1.0), ("X", 10, None, 7.0))
    await lab.materialize()
    await lab.tables.delete("facts/1.parquet")
    lab.write("2", ("K", 10, None, 1.0))
    lab.clock.advance(600)
    assert 1 == await lab.pick_up()
    assert [(PRESENT, 1.0), (NOT_FOUND, None)] == await lab.read(["K", "X"])
    assert {f"{URI}2.parquet"} == {
        uri for uri, s in (await lab.seen.seen("p", "facts", 1)).items() if uri.endswith("2.parquet") or s.due
    }
    assert 0 == await lab.pick_up()


async def test_a_job_that_stops_inside_a_file_loses_no_later_row() -> None:
    lab = BatchViewLab()
    later: list[Row] = [("A", 30, None, 1.0), ("B", 20, None, 2.0)]
    rows: list[Row] = [(f"N{i}", 0, None, 0.0) for i in range(BATCH_ROWS)]
    lab.write("1", later[0], *rows[1:], later[1])
    first = RecordingJob()
    saved = first.save_checkpoint

    async def stop_after_the_first_batch(checkpoint: bytes) -> None:
        await saved(checkpoint)
        raise JobCancelled

    first.save_checkpoint = stop_after_the_first_batch  # type: ignore[method-assign]
    with pytest.raises(JobCancelled):
        await lab.materialize(job=first)
    done = await lab.materialize(job=RecordingJob(first.checkpoint))
    assert (BATCH_ROWS + 1, 2) == (done.read, done.later)
    assert {("p", "facts", 1): micros(20)} == await lab.seen.due(micros(30))
    lab.clock.advance(30 * 60)
    await lab.pick_up()
    assert [(PRESENT, 1.0), (PRESENT, 2.0)] == await lab.read(["A", "B"])


async def test_later_rows_that_were_read_before_an_erasure_do_not_return() -> None:
    lab = BatchViewLab(minute=1)
    lab.write("1", ("K", 10, None, 1.0), ("K", 20, None, 2.0), ("L", 10, None, 3.0))
    await lab.materialize()
    lab.clock.advance(60)
    lab.erase("K")
    lab.clock.advance(60)
    lab.write("2", ("K", 20, None, 4.0))
    await lab.materialize()
    lab.clock.advance(9 * 60)
    await lab.pick_up()
    assert [(NOT_FOUND, None), (PRESENT, 3.0)] == await lab.read(["K", "L"])
    lab.clock.advance(10 * 60)
    await lab.pick_up()
    assert [(PRESENT, 4.0)] == await lab.read(["K"]), "the file that was read after the erasure"


async def test_a_view_gets_one_job_per_due_time_and_another_if_it_failed() -> None:
    lab = BatchViewLab()
    await lab.seen.mark_due("p", "facts", 1, "s3://memory/none", SeenFile("", micros(1), 1))
    await lab.seen.mark_due("p", "gone", 1, "s3://memory/none", SeenFile("", micros(1), 1))
    lab.clock.advance(60)
    for _ in range(3):
        assert 1 == await lab.due_rows.submit()
    assert 1 == len(lab.submitted)
    lab.clock.advance(3600)
    await lab.due_rows.submit()
    assert 2 == len(lab.submitted)
    assert [("p", "facts", True)] * 2 == [(r.project, r.view, r.due_only) for _, r in lab.submitted]


async def test_a_row_that_was_valid_before_is_not_written_again() -> None:
    lab = BatchViewLab()
    lab.write("1", ("K", 0, None, 1.0), ("L", 10, None, 2.0))
    await lab.materialize()
    lab.clock.advance(600)
    lab.online = MemoryOnlineStore()
    done = await lab.materialize(due_only=True)
    assert (2, 1) == (done.read, done.written)
    assert [(NOT_FOUND, None), (PRESENT, 2.0)] == await lab.read(["K", "L"])
    assert {f"{URI}1.parquet": SeenFile("1")} == await lab.seen.seen("p", "facts", 1)


MINUTES = st.integers(-6, 12)
ROWS = st.lists(
    st.tuples(st.sampled_from("AB"), MINUTES, st.none() | MINUTES, st.floats(0, 9, width=16)), max_size=7
)


def known(row: Row, created: bool) -> int:
    """The minute from which a row is valid."""
    return max(row[1], row[2]) if created and row[2] is not None else row[1]


@settings(max_examples=100, deadline=None)
@given(
    st.booleans(),
    st.sampled_from([0, 4]),
    st.lists(ROWS, min_size=1, max_size=3),
    st.data(),
)
async def test_reads_at_any_time_agree_with_point_in_time_joins(
    created: bool, ttl: int, files: list[list[Row]], data: Any
) -> None:
    """What is PRESENT or NULL online equals the join; what the store cannot know is NOT_YET_VALID."""
    lab = BatchViewLab(created=created, ttl_minutes=ttl)
    lab.write("0", ("Z", -100, None, 0.0))
    written: list[Row] = []
    now = 0
    for number, rows in enumerate(files, start=1):
        lab.write(str(number), *rows)
        written += rows
        await lab.materialize()
        now += data.draw(st.integers(0, 4))
        lab.clock.advance(now * 60 - (lab.clock.now() - at(0)).total_seconds())
        await lab.pick_up()
    for key in "AB":
        valid = [row for row in written if row[0] == key and known(row, created) <= now]
        (current,) = await lab.read([key])
        minutes = range(-7, now + 1)
        offline = dict(zip(minutes, await lab.offline([key] * len(minutes), minutes), strict=True))
        assert offline[now] == (current[1] if current[0] != STALE else None), "a read of now is a join at now"
        for minute, joined in offline.items():
            ((status, value),) = await lab.read([key], minute)
            if not valid:
                assert (NOT_FOUND, None, None) == (status, value, joined)
                continue
            order = [(row[1], row[1] if row[2] is None or not created else row[2]) for row in valid]
            newest = valid[max(range(len(valid)), key=lambda i: (order[i], i))]
            if known(newest, created) > minute:
                assert (NOT_YET_VALID, None) == (status, value)
            elif status == STALE:
                assert joined is None
            else:
                assert (PRESENT, joined) == (status, value)
    assert NULL not in {status for status, _ in await lab.read(["A", "B"])}
