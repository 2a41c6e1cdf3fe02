"""Regular expressions of the product match alike in every Python that it supports."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.support.product_sources import product_files

ATOMIC = re.compile(r"\)(?:[*+?]|\{\d*,?\d*\})\+|\(\?>")


def texts(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_no_pattern_has_atomic_groups() -> None:
    """The Python 3.11.2 of Debian 12 matches possessive quantifiers of groups wrongly: it refused filters
    of runs with AND."""
    assert [] == [
        f"{path}: {text}" for path in product_files() for text in texts(path) if ATOMIC.search(text)
    ]
