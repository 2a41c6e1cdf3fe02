"""The Lua scripts in lua/, which run inside Redis.

Each script touches one key, so that it works on a cluster; it is atomic, and running it twice changes nothing
more.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources

from flywheel_feature.windows.hyperloglog import OBSERVATIONS


@dataclass(frozen=True, slots=True)
class Script:
    """The source of a script, and the SHA-1 under which Redis caches it."""

    source: str
    sha: str


def _load(name: str, constants: str = "") -> Script:
    file = resources.files(__package__) / "lua" / f"{name}.lua"
    source = constants + file.read_text(encoding="utf-8")
    return Script(source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


WRITE_ROW = _load("write_row")
MERGE_TILES = _load("merge_tiles", f"local OBSERVATIONS = {OBSERVATIONS}\n")
ADVANCE_POSITION = _load("advance_position")
TAKE_POSITIONS = _load("take_positions")
MARK_GENERATION = _load("mark_generation")
