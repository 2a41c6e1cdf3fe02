"""The Python files of the product."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = ("services", "sdk", "deploy", "protos")
LEFT_OUT = {"_generated", "build", "__pycache__"}


def product_files() -> list[Path]:
    found = [f for name in SOURCES for f in (ROOT / name).rglob("*.py") if not LEFT_OUT & set(f.parts)]
    assert len(found) > 500
    return found
