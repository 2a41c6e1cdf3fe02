"""The spool of a run: a queue of records on disk, from the training process to the trainer.

Records are appended to segments (`00000001.spool`) and sent in order. The file `sent` has the position up to
which they were sent: after a crash at most the records after it are sent again, and every record is
idempotent. A record that was cut off by a crash fails its checksum and ends the spool.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import struct
import threading
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from flywheel.tracking.errors import SpoolFull, TrackingError

SEGMENT_BYTES = 16 * 1024 * 1024
_HEADER = struct.Struct("<IIB")
_COPY_BYTES = 1024 * 1024


class Kind(IntEnum):
    """What a record has: the bytes of a request, or the JSON of a file."""

    CREATE = 1
    CONTINUE = 2
    METRICS = 3
    UPDATE = 4
    EDIT = 5
    ARTIFACT = 6


@dataclass(frozen=True)
class Record:
    """One record and its position behind it."""

    kind: Kind
    payload: bytes
    segment: int
    end: int


def default_root() -> Path:
    """FLYWHEEL_SPOOL, or `flywheel/spool` in the user's cache folder."""
    given = os.environ.get("FLYWHEEL_SPOOL")
    if given:
        return Path(given)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "flywheel" / "spool"


class Spool:
    """One process at a time has a spool open; one thread appends and one reads.

    `max_bytes` bounds what waits on disk. The disk is not synchronized at each record: a crash of the process
    loses nothing that was appended, a crash of the machine may.
    """

    def __init__(self, folder: Path, max_bytes: int = 2 * 1024**3) -> None:
        """Raises TrackingError when another process has it open, or the folder cannot be written."""
        self.folder, self._max_bytes = folder, max_bytes
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock_file = (folder / "lock").open("w")
        except OSError as error:
            raise TrackingError(
                f"The spool {folder} cannot be written ({error}): set FLYWHEEL_SPOOL to another folder."
            ) from error
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock_file.close()
            raise TrackingError(f"Another process has the spool {folder} open.") from error
        self._guard = threading.Lock()
        self.state: dict[str, Any] = {"segment": 0, "offset": 0, **self._read_state()}
        numbers = self._segments()
        self._read_segment, self._read_offset = self.state["segment"], self.state["offset"]
        if numbers and self._read_segment < numbers[0]:
            self._read_segment, self._read_offset = numbers[0], 0
        # A new segment: what an earlier process was writing may end in the middle of a record.
        self._write_segment = max([*numbers, self._read_segment, 0]) + 1
        self._writer = (folder / _segment_name(self._write_segment)).open("ab", buffering=0)
        self._write_offset = 0
        self.last_written = (0, 0)
        """Position behind the last record that was appended; compare with `position`."""
        self._bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        self._files = sum(1 for _ in (folder / "files").glob("*")) if (folder / "files").exists() else 0

    @property
    def waiting_bytes(self) -> int:
        """Bytes on disk, with what was sent of segments that still wait."""
        return self._bytes

    @property
    def position(self) -> tuple[int, int]:
        """Position behind the last record that was sent."""
        return self._read_segment, self._read_offset

    def write_description(self, description: Mapping[str, Any]) -> None:
        """Store what `sync` needs to send the spool without its process."""
        _replace(self.folder / "run.json", json.dumps(description))

    def append(self, kind: Kind, payload: bytes) -> None:
        """Append a record. Raises OSError, and SpoolFull for METRICS only: the others are small."""
        size = _HEADER.size + len(payload)
        if kind is Kind.METRICS and self._bytes + size > self._max_bytes:
            raise SpoolFull(
                f"{self._bytes} bytes wait in {self.folder}: at most {self._max_bytes} are allowed."
            )
        header = _HEADER.pack(len(payload), zlib.crc32(payload), kind)
        with self._guard:
            self._write(header + payload)
            self._bytes += size
            self._write_offset += size
            self.last_written = (self._write_segment, self._write_offset)
            if self._write_offset >= SEGMENT_BYTES:
                self._writer.close()
                self._write_segment += 1
                self._writer = (self.folder / _segment_name(self._write_segment)).open("ab", buffering=0)
                self._write_offset = 0

    def _write(self, data: bytes) -> None:
        """Write all of it, or nothing: a part of a record would hide the records after it."""
        written = 0
        try:
            while written < len(data):
                written += self._writer.write(data[written:]) or 0
        except OSError:
            self._writer.truncate(self._write_offset)
            raise

    def add_file(self, path: Path) -> tuple[str, int, str]:
        """Copy a file into the spool: its name there, size and SHA-256. Raises SpoolFull, OSError."""
        size = path.stat().st_size
        if self._bytes + size > self._max_bytes:
            raise SpoolFull(
                f"{path} has {size} bytes and {self._bytes} wait in {self.folder}: at most {self._max_bytes} "
                "are allowed."
            )
        (self.folder / "files").mkdir(exist_ok=True)
        with self._guard:
            self._files += 1
            copy = self.folder / "files" / f"{self._files:08d}-{os.getpid()}"
        digest, copied = hashlib.sha256(), 0
        with path.open("rb") as source, copy.open("wb") as target:
            while chunk := source.read(_COPY_BYTES):
                digest.update(chunk)
                target.write(chunk)
                copied += len(chunk)
        with self._guard:
            self._bytes += copied
        return copy.name, copied, digest.hexdigest()

    def file(self, name: str) -> Path:
        """The path of a copied file."""
        return self.folder / "files" / name

    def next(self) -> Record | None:
        """The first record that was not sent, or None."""
        while True:
            path = self.folder / _segment_name(self._read_segment)
            found = self._read(path) if path.exists() else None
            if found is not None:
                return found
            with self._guard:
                last = self._write_segment
                at_end = self._read_segment == last
            if at_end or self._read_segment > last:
                return None
            later = [n for n in self._segments() if n > self._read_segment]
            if path.exists():
                # The writer may have completed a record and begun a new segment since the read above.
                found = self._read(path)
                if found is not None:
                    return found
                self._remove(path)
            self._read_segment, self._read_offset = later[0], 0

    def _read(self, path: Path) -> Record | None:
        with path.open("rb") as file:
            file.seek(self._read_offset)
            header = file.read(_HEADER.size)
            if len(header) < _HEADER.size:
                return None
            length, checksum, kind = _HEADER.unpack(header)
            payload = file.read(length)
        if len(payload) < length or zlib.crc32(payload) != checksum:
            return None
        return Record(Kind(kind), payload, self._read_segment, self._read_offset + _HEADER.size + length)

    def sent(self, record: Record, **state: Any) -> None:
        """Go behind a record; `state` is kept beside the position."""
        self._read_segment, self._read_offset = record.segment, record.end
        self.state.update(state, segment=record.segment, offset=record.end)
        _replace(self.folder / "sent", json.dumps(self.state))
        if record.kind is Kind.ARTIFACT:
            self._remove(self.file(json.loads(record.payload)["file"]))

    def close(self, *, remove: bool = False) -> None:
        """Release the spool; `remove` deletes it."""
        with self._guard:
            self._writer.close()
        if remove:
            shutil.rmtree(self.folder, ignore_errors=True)
        self._lock_file.close()

    def _remove(self, path: Path) -> None:
        if path.exists():
            size = path.stat().st_size
            path.unlink()
            with self._guard:
                self._bytes -= size

    def _segments(self) -> list[int]:
        return sorted(int(path.stem) for path in self.folder.glob("*.spool"))

    def _read_state(self) -> dict[str, Any]:
        path = self.folder / "sent"
        try:
            return json.loads(path.read_text()) if path.exists() else {}
        except ValueError:
            # A crash of the machine may leave it empty. Records that are sent again have no second effect.
            return {}


def _segment_name(number: int) -> str:
    return f"{number:08d}.spool"


def _replace(path: Path, text: str) -> None:
    partial = path.with_suffix(".part")
    partial.write_text(text)
    partial.replace(path)
