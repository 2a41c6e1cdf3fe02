"""Runs programs of peers in their own environments, which must not hang a benchmark."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path


def output_of(
    name: str,
    command: Sequence[str | Path],
    seconds: float,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> str:
    """The standard output of a command; `name` is for messages.

    Raises RuntimeError if it fails, and after `seconds`. Then it is killed with the processes that it
    started, which would hold the pipes of its output.
    """
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=folder,
        start_new_session=True,
    ) as process:
        try:
            output, errors = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            _kill(process.pid)
            raise RuntimeError(f"{name} took longer than {seconds:g} s.") from None
        except BaseException:
            _kill(process.pid)
            raise
    if process.returncode:
        raise RuntimeError(f"{name}: {errors[-2000:]}")
    return output


def _kill(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
