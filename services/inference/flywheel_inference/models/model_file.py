"""A model file on the disk of the gateway."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ModelFile:
    """Path and registered SHA-256 digest (hexadecimal) of a model file."""

    path: Path
    sha256: str
