"""Freed memory of large messages is used again, without new pages from the system."""

from __future__ import annotations

import subprocess
import sys

ROUNDS = 5
PROGRAM = f"""
import resource
from flywheel_common.process.freed_memory import keep_freed_memory

{{call}}
MESSAGE = 15 * 2**20
faults = []
for _ in range({ROUNDS}):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    # As gRPC receives a message: pieces, then a copy of them; the next one comes before they are freed.
    first, pieces = b"x" * MESSAGE, bytearray(MESSAGE)
    copied = bytes(pieces)
    del first, pieces, copied
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(*faults)
"""


def _faults(call: str) -> list[int]:
    """New pages per round of a process."""
    program = [sys.executable, "-c", PROGRAM.format(call=call)]
    output = subprocess.run(program, check=True, capture_output=True, text=True, timeout=60).stdout
    return [int(number) for number in output.split()]


def test_a_process_uses_the_pages_of_a_freed_message_again():
    faults = _faults("assert keep_freed_memory()")
    assert max(faults[1:]) < 100, faults


def test_without_it_each_large_message_needs_new_pages():
    faults = _faults("")
    assert min(faults) > 3_000, faults
