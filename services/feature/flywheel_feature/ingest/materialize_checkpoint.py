"""The checkpoint of a MATERIALIZE job: which views, files and batches are done, and what was counted."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

from flywheel_feature.definitions.value_rules import Report
from flywheel_feature.tables.ports import TableFile


@dataclass(slots=True)
class MaterializeCheckpoint:
    """Saved after every batch; another process resumes from it."""

    finished: list[str] = field(default_factory=list)
    """Resource names of the views that are done."""
    uri: str = ""
    """The file that was begun last."""
    stamp: str = ""
    """Its stamp: another stamp means other contents."""
    batches: int = 0
    """Batches of this file that are online."""
    read: int = 0
    """Rows read, all views."""
    written: int = 0
    """Rows that were newer than the stored ones, all views."""
    newest: int = 0
    """Newest event time of the current view, microseconds."""
    due: int = 0
    """The earliest time at which a row of this file becomes valid that is not online; 0: none."""
    later: int = 0
    """Rows that become valid later, all views."""
    failures: list[str] = field(default_factory=list)
    """Messages about files and views that were left out."""
    report: Report = field(default_factory=Report)
    """Rows that broke validation rules."""

    def begin_file(self, file: TableFile) -> None:
        """Begin a file, or resume it after the batches that are online if it has not changed since."""
        if (self.uri, self.stamp) != (file.uri, file.stamp):
            self.uri, self.stamp, self.batches, self.due = file.uri, file.stamp, 0, 0

    def add_later(self, valid_from: int, rows: int) -> None:
        """Count rows of the file that become valid later, the first one at `valid_from`."""
        self.due = min(self.due or valid_from, valid_from)
        self.later += rows

    def finish_view(self, name: str) -> None:
        self.finished.append(name)
        self.uri, self.stamp, self.batches, self.due, self.newest = "", "", 0, 0, 0

    def dump(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def load(cls, data: bytes) -> MaterializeCheckpoint:
        """A new checkpoint for no data."""
        if not data:
            return cls()
        values = json.loads(data)
        return cls(**{**values, "report": Report.load(values["report"])})
