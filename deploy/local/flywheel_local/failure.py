"""The error of this package: a problem and its remedy."""

from __future__ import annotations

from pathlib import Path


class LocalError(RuntimeError):
    """A problem that the user has to fix; ``remedy`` says how."""

    def __init__(self, problem: str, remedy: str, *, log: Path | None = None) -> None:
        self.problem = problem
        self.remedy = remedy
        self.log = log
        text = f"{problem}\n  remedy: {remedy}"
        if log is not None:
            text += f"\n  log: {log}{_tail(log)}"
        super().__init__(text)


def _tail(log: Path, lines: int = 12) -> str:
    try:
        last = log.read_text(errors="replace").splitlines()[-lines:]
    except OSError:
        return ""
    return "".join(f"\n    | {line[:300]}" for line in last)
