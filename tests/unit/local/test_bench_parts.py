"""Benchmarks of several parts, and programs of peers: neither hangs, and a failure loses no other row."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import measure
from bench.common.peer import output_of

ROW = measure.row("one", 2.0, "s", measure.at_most(3, of_value=True))


def test_a_part_that_fails_loses_no_row_of_the_others() -> None:
    def failing(only: str) -> Iterator[measure.Row]:
        yield ROW
        raise RuntimeError("the peer went away")

    with pytest.raises(measure.PartsFailed, match="parts that failed: first") as caught:
        measure.run_parts("suite", {"first": failing, "second": lambda only: [ROW]}, "")
    assert [ROW, ROW] == caught.value.rows


def test_a_program_that_leaves_children_behind_is_ended_with_them(tmp_path: Path) -> None:
    child = f"sleep 300 & echo $! > {tmp_path}/pid; exit 0"
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="peer took longer than 1 s"):
        output_of("peer", ["sh", "-c", child], 1.0)
    assert time.monotonic() - began < 60
    pid = int((tmp_path / "pid").read_text())
    state = Path(f"/proc/{pid}/stat")
    give_up = time.monotonic() + 60  # a killed process ends when it gets the CPU
    while state.exists() and state.read_text().split()[2] != "Z":
        assert time.monotonic() < give_up, "the child still runs"
        time.sleep(0.01)


def test_the_error_of_a_program_is_in_the_message() -> None:
    assert "1\n" == output_of("peer", ["sh", "-c", "echo 1"], 60.0)
    with pytest.raises(RuntimeError, match="peer: no such table"):
        output_of("peer", ["sh", "-c", "echo no such table >&2; exit 3"], 60.0)
