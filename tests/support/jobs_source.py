"""Source archives of jobs."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Mapping


def archived(files: Mapping[str, str]) -> tuple[bytes, str]:
    """A gzipped tar archive of these files, and its SHA-256 (hex)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text.encode())
            tar.addfile(info, io.BytesIO(text.encode()))
    return buffer.getvalue(), hashlib.sha256(buffer.getvalue()).hexdigest()
