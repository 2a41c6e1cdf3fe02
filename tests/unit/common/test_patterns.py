"""Regular expressions of the product match alike in every Python that it supports."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[3]
SOURCES = ("services", "sdk", "deploy", "protos")
LEFT_OUT = {"_generated", "build", "__pycache__"}
ATOMIC = re.compile(r"\)(?:[*+?]|\{\d*,?\d*\})\+|\(\?>")


def texts(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_no_pattern_has_atomic_groups() -> None:
    """Atomic groups and possessive quantifiers of groups match wrongly before Python 3.11.5: filters of runs
    with AND were refused with the Python 3.11.2 of Debian 12."""
    files = [f for name in SOURCES for f in (ROOT / name).rglob("*.py") if not LEFT_OUT & set(f.parts)]
    assert len(files) > 500
    assert [] == [f"{f.relative_to(ROOT)}: {t}" for f in files for t in texts(f) if ATOMIC.search(t)]
