"""Paths: everything is below ``.local`` in the repository, which git ignores."""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
LOCKS = PACKAGE.parent
REPOSITORY = PACKAGE.parents[2]
LOCAL = Path(os.environ.get("FLYWHEEL_LOCAL_DIR", REPOSITORY / ".local")).resolve()

KAFKA_JARS = LOCAL / "kafka"
TRITON_SERVER = LOCAL / "triton" / "server"
TRITON_RUNTIME = LOCAL / "triton" / "runtime"
LIBPYTHON = LOCAL / "libpython"
STATE = LOCAL / "state.json"
