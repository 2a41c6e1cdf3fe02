"""Numbered SQL migrations, each applied once, in order, by one process at a time."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from flywheel_common.postgres.errors import InvalidMigrations, MigrationChanged, SchemaTooNew
from flywheel_common.postgres.pool import Connection, Pool, connection
from flywheel_common.telemetry.logs import get_logger

log = get_logger(__name__)

COMMON = Path(__file__).parent / "migrations"
_FILE = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")
_LOCK = 0x666C_7977  # "flyw"

_TABLE = """
CREATE TABLE IF NOT EXISTS schema_migration (
    package text NOT NULL, number integer NOT NULL, name text NOT NULL, sha256 text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (package, number))
"""


@dataclass(frozen=True)
class Migration:
    """A migration file. `package` is the folder above `migrations/`; `sha256` is that of the file."""

    package: str
    number: int
    name: str
    sql: str
    sha256: str


def read_migrations(directory: Path) -> list[Migration]:
    """The `NNNN_name.sql` files of a folder, by number. Gaps are allowed, so that parallel branches need not
    agree on the next number. Raises InvalidMigrations."""
    found = []
    for path in sorted(directory.glob("*.sql")):
        match = _FILE.fullmatch(path.name)
        if match is None:
            raise InvalidMigrations(f"{path.name} is not named NNNN_name.sql.")
        data = path.read_bytes()
        found.append(
            Migration(
                directory.parent.name,
                int(match[1]),
                match[2],
                data.decode(),
                hashlib.sha256(data).hexdigest(),
            )
        )
    if len({m.number for m in found}) != len(found):
        raise InvalidMigrations(f"Two migrations in {directory} have the same number.")
    return found


async def migrate(pool: Pool, *directories: Path | str) -> int:
    """Applies missing migrations, the common ones first, each in its own transaction; returns their number.

    Several processes may call it at once. Raises MigrationChanged when an applied file differs, SchemaTooNew
    when the database has a migration that the code does not know.
    """
    migrations = [m for folder in (COMMON, *directories) for m in read_migrations(Path(folder))]
    async with connection(pool) as conn:
        await conn.execute("SET statement_timeout = 0")
        await conn.execute("SELECT pg_advisory_lock($1)", _LOCK)
        try:
            return await _apply(conn, migrations)
        finally:
            if not conn.is_closed():
                await conn.execute("SELECT pg_advisory_unlock($1)", _LOCK)
                await conn.execute("RESET statement_timeout")


async def _apply(conn: Connection, migrations: list[Migration]) -> int:
    await conn.execute(_TABLE)
    applied = {
        (r["package"], r["number"]): r["sha256"] for r in await conn.fetch("SELECT * FROM schema_migration")
    }
    known = {(m.package, m.number) for m in migrations}
    packages = {m.package for m in migrations}
    if ahead := sorted(key for key in applied if key[0] in packages and key not in known):
        raise SchemaTooNew(
            f"The database has migration {ahead[0][0]}/{ahead[0][1]:04d}, which this version does not know: "
            "run the newer version.",
        )
    count = 0
    for m in migrations:
        before = applied.get((m.package, m.number))
        if before == m.sha256:
            continue
        if before is not None:
            raise MigrationChanged(
                f"Migration {m.package}/{m.number:04d}_{m.name} was changed after it was applied: "
                "add a new one instead.",
            )
        async with conn.transaction():
            await conn.execute(m.sql)
            await conn.execute(
                "INSERT INTO schema_migration (package, number, name, sha256) VALUES ($1, $2, $3, $4)",
                m.package,
                m.number,
                m.name,
                m.sha256,
            )
        log.info("migrated", package=m.package, number=m.number, name=m.name)
        count += 1
    return count
