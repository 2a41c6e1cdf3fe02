"""Errors about offline tables, their files and the archive of events."""

from __future__ import annotations

from flywheel_common.errors import DataLoss, FailedPrecondition, NotFound, Unavailable


class UnknownTable(NotFound):
    """There is no table at the address, or its bucket does not exist."""

    reason = "UNKNOWN_TABLE"
    remedy = "Check the address, or write the table first."


class CorruptTable(DataLoss):
    """A file of the table is not readable Parquet, or the Delta log of the table is not readable."""

    reason = "CORRUPT_TABLE"
    remedy = "Write the file that the message names again."


class TableChanged(FailedPrecondition):
    """A file or a version of the table was deleted while the table was read."""

    reason = "TABLE_CHANGED"
    remedy = "Retry when the writer of the table is done, or let it keep the files of older versions."


class UnsupportedFormat(FailedPrecondition):
    """The table uses a format, or features of its format, that this service cannot read."""

    reason = "UNSUPPORTED_FORMAT"
    remedy = "Write the table without the features that the message names."


class SourceMismatch(FailedPrecondition):
    """The files of a source do not contain what its schema declares."""

    reason = "SOURCE_MISMATCH"
    remedy = "Correct the files, or the schema of the source, in the column that the message names."


class ArchiveBehind(FailedPrecondition):
    """The archive of a stream source did not reach the end of its topic in time."""

    reason = "ARCHIVE_BEHIND"
    remedy = "Check that a stream worker is running, and retry."


class ObjectStoreDown(Unavailable):
    """The object store does not answer in time; a write may have happened."""

    reason = "OBJECT_STORE_DOWN"
    remedy = "Retry with backoff."
