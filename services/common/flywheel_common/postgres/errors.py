"""Errors of PostgreSQL, migrations, leases and idempotent requests."""

from __future__ import annotations

from flywheel_common.errors import (
    Aborted,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    Unavailable,
)


class PostgresUnavailable(Unavailable):
    """PostgreSQL is down, does not answer in time, or has no free connection."""

    reason = "POSTGRES_UNAVAILABLE"
    remedy = "Retry with backoff, with the same request_id: a failed write may have been committed."


class PostgresRefused(FailedPrecondition):
    """PostgreSQL refuses the user, the password or the database name at start."""

    reason = "POSTGRES_REFUSED"
    remedy = "Correct the DSN and create the database, then start the service again."


class SerializationFailure(Aborted):
    """A concurrent transaction won: a serialization failure, a deadlock or a lock that was not available."""

    reason = "SERIALIZATION_FAILURE"
    remedy = "Read again and retry."


class StatementTimeout(DeadlineExceeded):
    """A database statement took longer than the statement timeout and was cancelled."""

    reason = "STATEMENT_TIMEOUT"
    remedy = "Retry; ask for less data in one call if it happens again."


class InvalidRequestId(InvalidArgument):
    """`request_id` is too long."""

    reason = "INVALID_REQUEST_ID"
    remedy = "Use at most 200 characters, for example a UUID."


class RequestIdReused(InvalidArgument):
    """`request_id` was used before with another request."""

    reason = "REQUEST_ID_REUSED"
    remedy = "Use a new request_id for a new request; repeat a request unchanged."


class InvalidMigrations(FailedPrecondition):
    """A migration file has a wrong name, or two files have the same number."""

    reason = "INVALID_MIGRATIONS"
    remedy = "Name each file NNNN_name.sql, with a number of its own."


class SchemaTooNew(FailedPrecondition):
    """The database has a migration that this version of the service does not know."""

    reason = "SCHEMA_TOO_NEW"
    remedy = "Run the newer version of the service."


class MigrationChanged(FailedPrecondition):
    """A migration file was changed after it was applied."""

    reason = "MIGRATION_CHANGED"
    remedy = "Restore the file and put the change into a new migration."


class LeaseLost(Aborted):
    """The lease under which the transaction acted has expired or belongs to another process."""

    reason = "LEASE_LOST"
    remedy = "Stop the work; the new holder continues it."
